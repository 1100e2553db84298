"""Documents that are token ids already, used in place and memory-mapped where the file allows.

  a folder   written by `python -m lmjax.data.prepare`
  .npy       one flat array of ids
  .npz       `ids` and `offsets` (documents + 1)
  .bin       raw little-endian ids without a header (nanoGPT); needs dtype
Without offsets a flat array is one document, or with `eos` as many as end with that id.
"""

import dataclasses
import pathlib
import zipfile

import numpy as np

from lmjax import files as files_lib
from lmjax.data import store as store_lib
from lmjax.data.sources import _files
from lmjax.registry import register

_BLOCK = 1 << 24
_INTEGERS = ('uint8', 'int8', 'uint16', 'int16', 'uint32', 'int32', 'uint64', 'int64')


@register('source', tokens=True)
@dataclasses.dataclass(frozen=True)
class Tokens:
  """Pre-tokenized ids: a prepared folder, .npy, .npz (ids, offsets) or raw .bin (needs dtype)."""

  path: str
  dtype: str | None = None
  eos: int | None = None

  @staticmethod
  def check(path, dtype, eos):
    if not path:
      raise ValueError("path='': a prepared folder or a file of ids is expected")
    if dtype is not None and dtype not in _INTEGERS:
      raise ValueError(f'dtype={dtype!r}: one of {", ".join(_INTEGERS)} is expected')
    if eos is not None and eos < 0:
      raise ValueError(f'eos={eos}: an id of at least 0 is expected')

  def store(self) -> store_lib.TokenStore:
    """The ids in place. Raises ValueError naming the file."""
    path = pathlib.Path(files_lib.expanded(self.path))
    if path.is_dir():
      self._refuse(path, 'a prepared folder', 'dtype', 'eos')
      return store_lib.TokenStore.open(path)
    (file,) = self._files()
    tokens, offsets = self._read(file)
    if offsets is None:
      offsets = split(tokens, self.eos)
    return store_lib.TokenStore(tokens, offsets, fingerprint=self.fingerprint(), name=str(file))

  def _files(self):
    files = _files.find(self.path)
    if len(files) != 1:
      raise ValueError(
        f'path={self.path!r} names {len(files)} files; one is expected (join several sources with '
        '+)'
      )
    return files

  def _refuse(self, file, what: str, *names: str):
    for name in names:
      if getattr(self, name) is not None:
        raise ValueError(
          f'{file} is {what}, which holds its own {name}; remove {name}={getattr(self, name)!r}'
        )

  def _read(self, file: pathlib.Path):
    """(ids, offsets or None)."""
    try:
      if file.suffix == '.npy':
        self._refuse(file, 'a .npy file', 'dtype')
        return np.load(file, mmap_mode='r', allow_pickle=False), None
      if file.suffix == '.npz':
        self._refuse(file, 'an .npz file', 'dtype', 'eos')
        with np.load(file, allow_pickle=False) as arrays:
          if not {'ids', 'offsets'} <= set(arrays.files):
            raise ValueError(
              f'it has {", ".join(arrays.files) or "nothing"}; ids and offsets are expected'
            )
          return arrays['ids'], arrays['offsets']
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as e:
      raise ValueError(str(e) if str(file) in str(e) else f'{file} cannot be read: {e}') from None
    if file.suffix != '.bin':
      raise ValueError(f'{file}: a folder, .npy, .npz or .bin is expected')
    if self.dtype is None:
      raise ValueError(f'{file}: raw ids need their type, as in tokens(path=..., dtype="uint16")')
    dtype = np.dtype(self.dtype).newbyteorder('<')
    if file.stat().st_size % dtype.itemsize:
      raise ValueError(
        f'{file} has {file.stat().st_size} bytes, not a multiple of {dtype.itemsize} '
        f'({self.dtype}): '
        'it is truncated or of another dtype'
      )
    return np.memmap(file, dtype, mode='r'), None

  def fingerprint(self) -> str:
    if pathlib.Path(files_lib.expanded(self.path)).is_dir():
      return self.store().fingerprint()
    # No times: a copy of the file gives the same training run.
    return _files.fingerprint(self._files(), 'tokens', self.dtype, self.eos, times=False)

  def __iter__(self):
    store = self.store()
    return (np.asarray(store[i]) for i in range(len(store)))


def split(tokens, eos: int | None) -> np.ndarray:
  """Offsets of the documents in a flat array, each ending with the id eos; without eos it is one
  document.
  """
  if eos is None:
    return np.array([0, len(tokens)], np.int64)
  ends = [
    i + 1 + np.flatnonzero(tokens[i : i + _BLOCK] == eos) for i in range(0, len(tokens), _BLOCK)
  ]
  ends = np.concatenate([np.zeros(1, np.int64), *ends])
  return ends if ends[-1] == len(tokens) else np.append(ends, len(tokens))
