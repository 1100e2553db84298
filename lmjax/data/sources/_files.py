"""What file sources share: finding files, reading them compressed or not, fingerprints of
contents.
"""

import bz2
import contextlib
import glob
import gzip
import hashlib
import io
import lzma
import os
import pathlib
import tarfile
import zipfile
import zlib

from lmjax import files as files_lib

COMPRESSED = ('.gz', '.tgz', '.xz', '.bz2', '.zst')
_STEP = (
  1 << 12
)  # packed bytes at a time: zstd unpacks them at once, to 32,768 times as many at most
_WHOLE = 1 << 26  # files up to this size are hashed whole
_SAMPLES, _SAMPLE = 64, 1 << 16


def find(path, suffixes: tuple[str, ...] = ()) -> list[pathlib.Path]:
  """Files of a path: a file, a folder (its files of these suffixes, sorted), a glob pattern, or a
  tuple of them. `~` and variables such as $LMJAX_DATA stand for what they do in a shell, so that a
  config is the same wherever the data lie.

  Raises ValueError naming the path when nothing is there or a file is empty.
  """
  if isinstance(path, (tuple, list)):
    if not path:
      raise ValueError('path=(): at least one file is expected')
    return [f for p in path for f in find(p, suffixes)]
  if not str(path):
    raise ValueError("path='': a file, a folder or a pattern is expected")
  text = files_lib.expanded(path)
  here = pathlib.Path(text)
  if here.is_dir():
    found = sorted(
      p
      for p in here.iterdir()
      if p.is_file() and not p.name.startswith('.') and matches(p, suffixes)
    )
    wanted = f' ending in {", ".join(suffixes)} (plain or compressed)' if suffixes else ''
    if not found:
      raise ValueError(f'path={text!r}: the folder has no files{wanted}')
  elif here.exists():
    found = [here]
  else:
    found = sorted(pathlib.Path(p) for p in glob.glob(text, recursive=True) if os.path.isfile(p))
    if not found:
      raise ValueError(f'path={text!r}: no such file, and no file matches it as a pattern')
  for file in found:
    if not file.stat().st_size:
      raise ValueError(f'{file} is empty')
  return found


def matches(path: pathlib.PurePath, suffixes: tuple[str, ...]) -> bool:
  """Whether a name has one of the suffixes, with or without that of a compression behind it."""
  return not suffixes or any(s in path.suffixes for s in suffixes)


def open_bytes(file: pathlib.Path) -> io.BufferedIOBase:
  """Opens a file for reading, decompressing .gz, .xz, .bz2 and .zst. Raises ValueError when it
  cannot be opened.
  """
  try:
    return decompressed(file, file.suffix)
  except OSError as e:
    raise ValueError(f'cannot read {file}: {e.strerror or e}') from None


def decompressed(source, suffix: str) -> io.BufferedIOBase:
  """A path or a stream of bytes, read through the decompression that the suffix names, or as it
  is.
  """
  if suffix in ('.gz', '.tgz'):
    return gzip.open(source, 'rb')
  if suffix == '.xz':
    return lzma.open(source, 'rb')
  if suffix == '.bz2':
    return bz2.open(source, 'rb')
  if suffix == '.zst':
    return io.BufferedReader(_Zstandard(source), 1 << 20)
  return open(source, 'rb') if isinstance(source, pathlib.Path) else source


class _Zstandard(io.RawIOBase):
  """A decompressed .zst file. Unlike the library's own stream it raises EOFError when the file ends
  inside a frame.
  """

  def __init__(self, source):
    try:
      import zstandard
    except ImportError:
      name = source if isinstance(source, pathlib.Path) else 'a .zst file'
      raise ValueError(f"reading {name} needs zstandard: pip install 'lmjax[zstd]'") from None
    self._new = zstandard.ZstdDecompressor().decompressobj
    self._file = open(source, 'rb') if isinstance(source, pathlib.Path) else source
    self._frame, self._ready = None, b''

  def readable(self) -> bool:
    return True

  def readinto(self, out) -> int:
    while not self._ready:
      rest = self._frame.unused_data if self._frame is not None and self._frame.eof else b''
      data = rest or self._file.read(_STEP)
      if not data:
        if self._frame is not None and not self._frame.eof:
          raise EOFError('the file ends before its last frame does')
        return 0
      if self._frame is None or self._frame.eof:
        self._frame = self._new()
      self._ready = self._frame.decompress(data)
    n = min(len(out), len(self._ready))
    out[:n] = self._ready[:n]
    self._ready = self._ready[n:]
    return n

  def close(self):
    if not self.closed:
      if hasattr(self, '_file'):
        self._file.close()
      super().close()


def damage() -> tuple[type[Exception], ...]:
  """What decompressors and archives raise on a damaged or cut file."""
  kinds = (EOFError, OSError, lzma.LZMAError, zlib.error, tarfile.TarError, zipfile.BadZipFile)
  try:
    import zstandard

    return (*kinds, zstandard.ZstdError)
  except ImportError:
    return kinds


@contextlib.contextmanager
def reading(where: str):
  """Names the place in what a damaged file raises."""
  try:
    yield
  except damage() as e:
    raise ValueError(f'{where} is damaged: {e}') from None


def decode(data: bytes, where, encoding: str = 'utf-8') -> str:
  try:
    return data.decode(encoding)
  except UnicodeDecodeError as e:
    raise ValueError(
      f'{where} is not {encoding} text: byte 0x{data[e.start]:02x} at offset {e.start}; convert '
      'it, or '
      "name its encoding, as in text(path=..., encoding='latin-1')"
    ) from None
  except LookupError:
    raise ValueError(f'encoding={encoding!r} is not known; utf-8 or latin-1 are examples') from None


def fingerprint(files, *words, times: bool = True) -> str:
  """Of contents, not of paths: size and hash of each file in order, and any words (arguments that
  change the documents).

  Files above 64 MiB are hashed at 64 places; with `times` their modification time counts as well,
  so that an edit elsewhere in them is not missed.
  """
  digest = hashlib.sha256(repr(words).encode())
  for file in files:
    size = file.stat().st_size
    digest.update(b'%d;' % size)
    with open(file, 'rb') as f:
      if size <= _WHOLE:
        digest.update(hashlib.file_digest(f, 'sha256').digest())
        continue
      if times:
        digest.update(b'%d;' % file.stat().st_mtime_ns)
      for i in range(_SAMPLES):
        f.seek((size - _SAMPLE) * i // (_SAMPLES - 1))
        digest.update(f.read(_SAMPLE))
  return digest.hexdigest()
