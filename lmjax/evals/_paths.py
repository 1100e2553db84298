"""Where the files of evals lie, and reading them: plain, .xz, .gz or .zst, told by their first
bytes.

An eval with path='' takes its default file from `$LMJAX_DATA/eval`, or from `$LMJAX_TEST_DATA/eval`
where LMJAX_DATA is not set.
"""

import gzip
import json
import lzma
import os
import pathlib
from typing import Any, Iterable

from lmjax import files
from lmjax import kinds

VARIABLES = ('LMJAX_DATA', 'LMJAX_TEST_DATA')
ENDINGS = ('', '.xz', '.gz', '.zst')


def find(path: str, default: str = '') -> pathlib.Path:
  """The file `path`, or the eval's default one. Raises ValueError that says how to name a file."""
  if path:
    found = pathlib.Path(files.expanded(path))
    if not found.is_file():
      raise ValueError(f'path={path!r}: no such file')
    return found
  if not default:
    raise ValueError("path='' names no file: say which text to score, as in path='test.txt'")
  folder = next((os.environ[v] for v in VARIABLES if os.environ.get(v)), None)
  if folder is None:
    raise ValueError(
      f"path='' and LMJAX_DATA is not set: give path='.../{default}', or set LMJAX_DATA to the "
      f'folder that holds eval/{default}'
    )
  options = [pathlib.Path(folder) / 'eval' / (default + e) for e in ENDINGS]
  found = next((o for o in options if o.is_file()), None)
  if found is None:
    raise ValueError(
      f"no file {options[0]} (nor with {', '.join(ENDINGS[1:])}): give path='.../{default}'"
    )
  return found


def stem(path: pathlib.Path) -> str:
  """The file's name without the endings of compression and of its kind: the version of the data,
  for the names of scores.
  """
  name = path.name
  for end in (*ENDINGS[1:], '.jsonl', '.txt'):
    name = name.removesuffix(end)
  return name


def data(path: pathlib.Path) -> bytes:
  """The content, decompressed. Raises ValueError naming the file."""
  try:
    raw = path.read_bytes()
    if raw.startswith(b'\xfd7zXZ\x00'):
      return lzma.decompress(raw)
    if raw.startswith(b'\x1f\x8b'):
      return gzip.decompress(raw)
    if raw.startswith(b'\x28\xb5\x2f\xfd'):
      return _zstd(raw, path)
    return raw
  except OSError as e:
    raise ValueError(f'cannot read {path}: {e.strerror or e}') from None
  except (lzma.LZMAError, EOFError) as e:
    raise ValueError(f'{path} is damaged: {e}') from None


def _zstd(raw: bytes, path: pathlib.Path) -> bytes:
  try:
    import zstandard
  except ImportError:
    raise kinds.Unsupported(f"{path} is compressed with zstd: pip install 'lmjax[zstd]'") from None
  try:
    with zstandard.ZstdDecompressor().stream_reader(raw) as reader:
      return reader.read()
  except zstandard.ZstdError as e:
    raise ValueError(f'{path} is damaged: {e}') from None


def text(path: pathlib.Path) -> str:
  """The text of a file. Raises ValueError where it is empty or not UTF-8."""
  content = data(path)
  try:
    out = content.decode('utf-8')
  except UnicodeDecodeError as e:
    raise ValueError(
      f'{path} is not UTF-8 text: byte {e.start} is 0x{content[e.start]:02x}'
    ) from None
  if not out.strip():
    raise ValueError(f'{path} is empty')
  return out


def rows(
  path: pathlib.Path, fields: Iterable[str], limit: int | None = None
) -> list[dict[str, Any]]:
  """The objects of a .jsonl file, the first `limit` of them. Raises ValueError naming the file, the
  line and the field.
  """
  out = []
  for number, line in enumerate(text(path).split('\n'), 1):
    if not line.strip():
      continue
    if limit is not None and len(out) == limit:
      break
    try:
      row = json.loads(line)
    except ValueError as e:
      raise ValueError(f'{path}, line {number}: not JSON: {e}') from None
    missing = [f for f in fields if f not in row] if isinstance(row, dict) else list(fields)
    if missing:
      have = ', '.join(row) if isinstance(row, dict) else type(row).__name__
      raise ValueError(
        f'{path}, line {number}: the field {missing[0]!r} is missing; there is {have}'
      )
    out.append(row)
  return out


def check_limit(limit: int | None):
  if limit is not None and limit < 1:
    raise ValueError(f'limit={limit}: a positive number of items or None is expected')
