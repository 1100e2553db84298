"""Arrays in safetensors files, whose header is checked before anything is mapped.

  8 bytes   length n of the header, little-endian
  n bytes   JSON: {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...,
            "__metadata__": {"key": "text"}}
  the rest  the arrays, row-major and little-endian, without holes

A file may come from anywhere: every refusal is a ValueError naming the file and the array. There is
no checksum; a header that was changed into another valid one cannot be told. Format and library:
https://huggingface.co/docs/safetensors
"""

import dataclasses
import json
import math
import os
import pathlib
import sys
from typing import Any, Iterable, Mapping

import ml_dtypes
import numpy as np
import safetensors
from safetensors import numpy as library

MAX_HEADER = 100_000_000  # the library's own bound
DTYPES = {
  'BOOL': np.bool_,
  'U8': np.uint8,
  'I8': np.int8,
  'U16': np.uint16,
  'I16': np.int16,
  'U32': np.uint32,
  'I32': np.int32,
  'U64': np.uint64,
  'I64': np.int64,
  'F16': np.float16,
  'BF16': ml_dtypes.bfloat16,
  'F32': np.float32,
  'F64': np.float64,
  'C64': np.complex64,
  'F8_E4M3': ml_dtypes.float8_e4m3fn,
  'F8_E5M2': ml_dtypes.float8_e5m2,
}
_MAX_AXES = 64  # NumPy's
_METADATA = '__metadata__'
_KEYS = ('dtype', 'shape', 'data_offsets')


@dataclasses.dataclass(frozen=True)
class Entry:
  """One array: `begin` and `end` count bytes from the end of the header."""

  dtype: np.dtype
  shape: tuple[int, ...]
  begin: int
  end: int


@dataclasses.dataclass(frozen=True)
class Header:
  """What a file says that it holds. start: bytes before the arrays; size: bytes of the arrays."""

  entries: dict[str, Entry]
  metadata: dict[str, str]
  start: int
  size: int


def read(path: Any) -> dict[str, np.ndarray]:
  """Arrays by name, read-only.

  They are views of the mapped file, so that only what is used is read; one that does not lie
  aligned in it is copied. The file must not change while they are in use.

  Raises ValueError naming the file, and the array where it is one, if the file is not sound.
  """
  assert sys.byteorder == 'little', 'bytes are used as they lie in the file'
  head = header(path)
  _ask_library(path, head)
  data = np.empty(0, np.uint8)
  if head.size:
    data = np.memmap(path, np.uint8, 'r', head.start, (head.size,)).view(np.ndarray)
  return {name: _view(path, name, e, data[e.begin : e.end]) for name, e in head.entries.items()}


def _view(path: Any, name: str, entry: Entry, data: np.ndarray) -> np.ndarray:
  if entry.dtype == np.bool_ and (data > 1).any():
    raise ValueError(f'{path}: {name!r} is BOOL and holds bytes that are neither 0 nor 1')
  out = data.view(entry.dtype).reshape(entry.shape)
  if not out.flags.aligned:
    out = out.copy()
    out.flags.writeable = False
  return out


def _ask_library(path: Any, head: Header) -> None:
  """A second reading of the header, by those who define the format."""
  try:
    with safetensors.safe_open(path, framework='np') as f:
      same = set(f.keys()) == head.entries.keys()
  except (safetensors.SafetensorError, OSError) as e:
    raise ValueError(f'{path} is not a sound safetensors file: {e}') from None
  if not same:
    raise ValueError(f'{path}: its arrays have other names to the safetensors library')


# ------------------------------------------------------------------ the header


def header(path: Any) -> Header:
  """The checked header of a file; raises ValueError as `read` does."""
  path = pathlib.Path(path)
  try:
    if path.exists() and not path.is_file():
      raise ValueError(f'{path} is not a file')
    with path.open('rb') as f:
      size = os.fstat(f.fileno()).st_size
      length = int.from_bytes(f.read(8), 'little')
      if size < 8:
        raise ValueError(f'{path} has {size} bytes; a safetensors file has at least 8')
      if length > min(size - 8, MAX_HEADER):
        raise ValueError(
          f'{path}: its header is said to have {length} bytes; the file has {size - 8} more, and '
          f'{MAX_HEADER} are accepted'
        )
      text = f.read(length)
  except OSError as e:
    raise ValueError(f'cannot read {path}: {e.strerror or e}') from None
  found = _json(path, text)
  metadata = found.pop(_METADATA, {})
  if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
    raise ValueError(f'{path}: {_METADATA} is {_short(metadata)}; texts by name are accepted')
  size -= 8 + length
  entries = {name: _entry(f'{path}: {_short(name)}', e, size) for name, e in found.items()}
  _check_layout(path, entries, size)
  return Header(entries, metadata, 8 + length, size)


def _json(path: pathlib.Path, text: bytes) -> dict[str, Any]:
  def once(pairs):
    out = dict(pairs)
    if len(out) < len(pairs):
      names = [k for k, _ in pairs]
      raise ValueError(f'{_short(next(k for k in out if names.count(k) > 1))} is there twice')
    return out

  def refuse(constant):
    raise ValueError(f'{constant} is no JSON')

  if text[:1] != b'{':
    raise ValueError(f'{path}: its header is not a JSON object')
  try:
    found = json.loads(text.decode('utf-8'), object_pairs_hook=once, parse_constant=refuse)
    json.dumps(found, ensure_ascii=False).encode('utf-8')  # half of a surrogate pair is no text
  except (ValueError, RecursionError) as e:
    raise ValueError(f'{path}: its header cannot be read ({e})') from None
  return found


def _entry(where: str, entry: Any, size: int) -> Entry:
  if not isinstance(entry, dict) or sorted(entry) != sorted(_KEYS):
    raise ValueError(f'{where} is {_short(entry)}; an object of {", ".join(_KEYS)} is accepted')
  dtype, shape, offsets = (entry[k] for k in _KEYS)
  if not isinstance(dtype, str) or dtype not in DTYPES:
    raise ValueError(f'{where} has dtype {_short(dtype)}; accepted are {", ".join(DTYPES)}')
  if not _are_counts(shape) or len(shape) > _MAX_AXES:
    raise ValueError(
      f'{where} has shape {_short(shape)}; at most {_MAX_AXES} whole numbers from 0 are accepted'
    )
  if not _are_counts(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1] <= size:
    raise ValueError(
      f'{where} has data_offsets {_short(offsets)}; two ascending ones up to {size}, where the '
      'file ends, are accepted'
    )
  kind = np.dtype(DTYPES[dtype])
  # An axis of 0 must not hide a product that NumPy cannot hold.
  if math.prod(max(n, 1) for n in shape) * kind.itemsize >= 2**63:
    raise ValueError(f'{where} has shape {_short(shape)}, which is too large')
  bytes_needed = math.prod(shape) * kind.itemsize
  if bytes_needed != offsets[1] - offsets[0]:
    raise ValueError(
      f'{where} has {offsets[1] - offsets[0]} bytes; {dtype} of shape {_short(shape)} needs '
      f'{bytes_needed}'
    )
  return Entry(kind, tuple(shape), *offsets)


def _check_layout(path: pathlib.Path, entries: Mapping[str, Entry], size: int) -> None:
  """Every byte belongs to exactly one array."""
  at = 0
  for name, e in sorted(entries.items(), key=lambda x: (x[1].begin, x[1].end)):
    if e.begin != at:
      what = 'overlaps the array before it' if e.begin < at else 'leaves a hole before it'
      raise ValueError(f'{path}: {_short(name)} begins at byte {e.begin}, not at {at}: it {what}')
    at = e.end
  if at != size:
    raise ValueError(f'{path}: its arrays end at byte {at}, but {size} bytes follow the header')


def _are_counts(value: Any) -> bool:
  return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


def _short(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 80 else f'{text[:77]}...'


# ------------------------------------------------------------------ writing


def write(
  path: Any, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
  """Writes a new file, which appears under its name once it is complete.

  Raises ValueError where the file exists or cannot be written, or an array has a dtype that the
  format lacks (named).
  """
  path, metadata = pathlib.Path(path), dict(metadata or {})
  check_new(path)
  _check_texts([*arrays, *metadata, *metadata.values()], path)
  if _METADATA in arrays:
    raise ValueError(f'{path}: {_METADATA!r} cannot be the name of an array')
  accepted = {np.dtype(d) for d in DTYPES.values()}
  stored = {}
  for name, array in arrays.items():
    array = np.asarray(array, order='C')  # the library takes the memory as it lies
    if array.dtype.newbyteorder('=') not in accepted:
      raise ValueError(
        f'{path}: {_short(name)} has dtype {array.dtype}; safetensors hold '
        f'{", ".join(sorted(str(d) for d in accepted))}'
      )
    stored[name] = array
  partial = path.with_name(f'{path.name}.partial')
  try:
    library.save_file(stored, partial, metadata or None)
    partial.replace(path)
  except (OSError, ValueError, safetensors.SafetensorError) as e:
    raise ValueError(f'cannot write {path}: {e}') from e
  finally:
    partial.unlink(missing_ok=True)


def check_new(path: Any) -> None:
  """Raises ValueError where a file could not be written without overwriting one."""
  path = pathlib.Path(path)
  for p in (path, path.with_name(f'{path.name}.partial')):
    if os.path.lexists(p):
      raise ValueError(f'{p} exists; name a file that does not')
  if not path.absolute().parent.is_dir():
    raise ValueError(f'{path}: there is no folder {path.absolute().parent}')


def _check_texts(texts: Iterable[Any], path: pathlib.Path) -> None:
  for text in texts:
    if not isinstance(text, str):
      raise ValueError(f'{path}: {_short(text)} is not a text; names and metadata are')
