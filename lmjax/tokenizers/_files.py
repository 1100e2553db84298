"""Reads the files of tokenizers and the texts that they are trained on.

Files compressed with xz are accepted everywhere, told by their first bytes and not by their name.
Every error is a ValueError that names the file.
"""

import codecs
import json
import lzma
import pathlib
import re
from typing import Any, Iterable, Iterator

from lmjax import files as files_lib

_XZ = b'\xfd7zXZ\x00'
_BLOCK = 1 << 20
# A newline after something that is not white space: no pre-tokenizer of lmjax joins the two, so a
# text may be cut there.
_CUT = re.compile(r'\S(?=\n)')


def read(path: str | pathlib.Path) -> bytes:
  """The content of a file, decompressed if it is xz. Raises ValueError where it cannot be read."""
  path = pathlib.Path(files_lib.expanded(path))
  try:
    if path.exists() and not (path.is_file() or path.is_dir()):  # a device may never end
      raise ValueError(f'{path} is not a regular file')
    data = path.read_bytes()
    return lzma.decompress(data) if data.startswith(_XZ) else data
  except FileNotFoundError:
    raise ValueError(f'no file {path}') from None
  except OSError as e:
    raise ValueError(f'cannot read {path}: {e.strerror}') from None
  except (lzma.LZMAError, EOFError) as e:
    raise ValueError(f'{path} is a damaged xz file: {e}') from None


def read_text(path: str | pathlib.Path) -> str:
  data = read(path)
  try:
    return data.decode('utf-8')
  except UnicodeDecodeError as e:
    raise ValueError(f'{path} is not UTF-8 text: byte {e.start} is 0x{data[e.start]:02x}') from None


def parse_json(text: str, path: str | pathlib.Path) -> dict[str, Any]:
  """A JSON object. Raises ValueError where the text is cut off or is something else."""
  try:
    value = json.loads(text)
  except (ValueError, RecursionError) as e:
    raise ValueError(
      f'{path} is not readable JSON, it may be cut off or of another kind: {e}'
    ) from None
  if not isinstance(value, dict):
    raise ValueError(f'{path} holds a JSON {type(value).__name__}, an object is expected')
  return value


def find(folder: pathlib.Path, names: Iterable[str]) -> pathlib.Path | None:
  """The first of the names, plain or with .xz, that the folder has."""
  options = (folder / (name + end) for name in names for end in ('', '.xz'))
  return next((p for p in options if p.is_file()), None)


def texts(paths: Iterable[str | pathlib.Path]) -> Iterator[str]:
  """The files as pieces of about a megabyte, cut only where a line ends; joined they are the files.

  Reads block by block, so files may be larger than memory. Raises ValueError for a missing file and
  for text that is not UTF-8.
  """
  for path in map(pathlib.Path, paths):
    rest = ''
    for block in _decoded(path):
      rest += block
      cut = max((m.end() for m in _CUT.finditer(rest)), default=0)
      if cut:
        yield rest[:cut]
        rest = rest[cut:]
    if rest:
      yield rest


def _decoded(path: pathlib.Path) -> Iterator[str]:
  decoder = codecs.getincrementaldecoder('utf-8')()
  seen = 0
  try:
    with open(path, 'rb') as f:
      packed = f.read(len(_XZ)) == _XZ
    with (lzma.open if packed else open)(path, 'rb') as f:
      while block := f.read(_BLOCK):
        pending = len(decoder.getstate()[0])
        yield decoder.decode(block)
        seen += len(block)
      pending = len(decoder.getstate()[0])
      decoder.decode(b'', final=True)
  except FileNotFoundError:
    raise ValueError(f'no file {path}') from None
  except UnicodeDecodeError as e:
    at = seen - pending + e.start
    raise ValueError(f'{path} is not UTF-8 text: byte {at} is 0x{e.object[e.start]:02x}') from None
  except (lzma.LZMAError, EOFError) as e:
    raise ValueError(f'{path} is a damaged xz file: {e}') from None
  except OSError as e:
    raise ValueError(f'cannot read {path}: {e.strerror}') from None
