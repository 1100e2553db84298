"""The small files of a run directory: read within bounds, and a failure to write them ends the run.

What they hold may have been edited, cut off by a full disk, or come from somebody else.
"""

import contextlib
import json
import os
import pathlib
import shutil
from typing import Any

from lmjax import bucket
from lmjax import exits

LARGEST = 1 << 26  # bytes


def expanded(path: Any) -> str:
  """`~` and variables such as $LMJAX_DATA stand for what they do in a shell."""
  return os.path.expandvars(os.path.expanduser(str(path)))


def cache() -> pathlib.Path:
  """Where lmjax keeps what can be made again."""
  home = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
  return pathlib.Path(home) / 'lmjax'


def path_of(path: Any) -> Any:
  """The path as an object: of the machine, or of a store that `bucket.place` looked at."""
  return bucket.path(path) if bucket.is_remote(path) else pathlib.Path(path)


def read_text(path: Any) -> str:
  """The text of a file. Raises ValueError naming the file where it cannot be read as UTF-8."""
  try:
    with bucket.told(), path_of(path).open('rb') as f:
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


def write(path: Any, text: str) -> None:
  """Through a rename, so that a reader never sees half; an object is never seen half."""
  if bucket.is_remote(path):
    with bucket.told():
      path.write_text(text)
    return
  partial = path.with_name(f'{path.name}.partial')
  partial.write_text(text, encoding='utf-8')
  partial.replace(path)


def copy(source: pathlib.Path, target: pathlib.Path) -> None:
  """Both on a disk; ends the run where it cannot be written."""
  with kept(target):
    shutil.copyfile(source, target)


def move(old: Any, new: Any) -> None:
  """Renames a file."""
  if bucket.is_remote(old):
    with bucket.told():
      bucket.move_file(old, new)
  else:
    old.rename(new)


def append(path: Any, text: str) -> None:
  """Adds text to a file, which is made where there is none."""
  if bucket.is_remote(path):
    bucket.append(path, text)
    return
  with open(path, 'a', encoding='utf-8') as f:
    f.write(text)


@contextlib.contextmanager
def kept(path: Any):
  """Ends the run, as a failed save does, where what is written within to `path` cannot be."""
  try:
    with bucket.told():
      yield
  except OSError as e:
    raise exits.Ended(exits.DISK, f'{path} cannot be written: {e.strerror or e}') from e
