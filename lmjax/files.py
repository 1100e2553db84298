"""The small files of a run directory: read within bounds, and a failure to write them ends the run.

What they hold may have been edited, cut off by a full disk, or come from somebody else.
"""

import contextlib
import json
import os
import pathlib
from typing import Any

from lmjax import exits

LARGEST = 1 << 26  # bytes


def expanded(path: Any) -> str:
  """`~` and variables such as $LMJAX_DATA stand for what they do in a shell."""
  return os.path.expandvars(os.path.expanduser(str(path)))


def read_text(path: Any) -> str:
  """The text of a file. Raises ValueError naming the file where it cannot be read as UTF-8."""
  try:
    with open(path, 'rb') as f:
      content = f.read(LARGEST + 1)
    if len(content) > LARGEST:
      raise ValueError(f'it has more than {LARGEST} bytes')
    return content.decode('utf-8')
  except OSError as e:
    raise ValueError(f'{path} cannot be read ({e.strerror or e})') from None
  except ValueError as e:
    raise ValueError(f'{path} cannot be read ({e})') from None


def read_json(path: Any) -> Any:
  """The JSON value of a file. Raises ValueError naming the file where there is none."""
  text = read_text(path)
  try:
    return json.loads(text)
  except (ValueError, RecursionError) as e:
    raise ValueError(f'{path} cannot be read ({e})') from None


def write(path: pathlib.Path, text: str) -> None:
  """Through a rename, so that a reader never sees half."""
  partial = path.with_name(f'{path.name}.partial')
  partial.write_text(text, encoding='utf-8')
  partial.replace(path)


@contextlib.contextmanager
def kept(path: Any):
  """Ends the run, as a failed save does, where what is written within to `path` cannot be."""
  try:
    yield
  except OSError as e:
    raise exits.Ended(exits.DISK, f'{path} cannot be written: {e.strerror or e}') from e
