"""Archives as text corpora: the members of .tar (.gz, .xz, .bz2, .zst), .tgz and .zip files, each
read as a stream in the archive's order. Nothing is written to disk.

An archive is refused, by a ValueError that names it and the member, where a member

  leaves the folder        absolute paths, '..', drive letters, backslashes, NUL
  is no file or folder     symbolic and hard links, devices, pipes, sparse files
  is encrypted, or packed in a way that Python does not read
  unpacks to too much      more than RATIO times its packed bytes, and more than SMALL

and where the archive holds more than MEMBERS, is cut off, or has data behind its end. Hidden files
(a name that begins with a dot) are left out, as in folders. Members that are compressed themselves
(.gz, .xz, .bz2, .zst) are unpacked under the same bounds; archives within archives are not.
"""

import contextlib
import io
import pathlib
import re
import stat
import struct
import tarfile
from typing import Iterator
import zipfile

from lmjax.data.sources import _files
from lmjax.specs import brief

MEMBERS = 1_000_000
# Text packs to a third or a tenth, dull logs to a fiftieth; deflate reaches 1032 on zeros.
RATIO = 200
SMALL = 1 << 26  # bytes that harm nobody, whatever they were packed to
HEADER = 1 << 20  # bytes of a tar's long name or extended header, which are held in memory

TAR = ('.tar', '.tar.gz', '.tgz', '.tar.xz', '.tar.bz2', '.tar.zst')
_PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_EXTENDED = (
  *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
  *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)


def is_archive(name) -> bool:
  """Whether a file of this name is read as an archive."""
  return str(name).endswith((*TAR, '.zip'))


def streams(files, suffixes: tuple[str, ...] = ()) -> Iterator[tuple[str, io.BufferedIOBase]]:
  """(where it comes from, its bytes) of every file, and of every member of an archive that has one
  of the suffixes. A stream is read before the next one is asked for.
  """
  for file in files:
    if is_archive(file.name):
      yield from members(file, suffixes)
    else:
      with _files.open_bytes(file) as stream:
        yield str(file), stream


def marks(files) -> tuple[bool, ...]:
  """Words for a fingerprint: which files are archives, where any is. The same bytes under another
  name are other documents.
  """
  found = tuple(is_archive(f.name) for f in files)
  return found if any(found) else ()


def members(file: pathlib.Path, suffixes=()) -> Iterator[tuple[str, io.BufferedIOBase]]:
  """`streams` of one archive. Raises ValueError naming it and the member."""
  size, count, read = file.stat().st_size, 0, 0
  unpacked = _Allowance(size)  # of members that are compressed themselves
  for name, length, stream in (_zip if file.suffix == '.zip' else _tar)(file):
    count += 1
    where = f'{file}, member {brief(name)}'
    if count > MEMBERS:
      raise ValueError(f'{file} has more than {MEMBERS:,} members; split it')
    _check_name(name, where)
    path = pathlib.PurePosixPath(name)
    hidden = any(p.startswith('.') for p in path.parts)
    if stream is None or hidden or not _files.matches(path, suffixes):
      continue
    if is_archive(name):
      raise ValueError(f'{where}: an archive within an archive is not read; unpack it')
    read += 1
    if path.suffix in _files.COMPRESSED:
      inner = _files.decompressed(stream, path.suffix)
      stream = io.BufferedReader(_Bounded(inner, where, _Allowance(length), unpacked))
    yield where, stream
  if not read:
    wanted = f' ending in {", ".join(suffixes)} (plain or compressed)' if suffixes else ''
    raise ValueError(f'{file} holds no files{wanted}')


class _TooMuch(ValueError):
  """What _Allowance raises; not a fault of a header."""


class _Allowance:
  """Bytes that may still come out of `packed` ones."""

  def __init__(self, packed: int):
    self.packed, self.left = packed, max(SMALL, RATIO * packed)

  def spend(self, n: int, where: str):
    self.left -= n
    if self.left < 0:
      raise _TooMuch(
        f'{where}: more than {max(SMALL, RATIO * self.packed):,} bytes unpack from '
        f'{self.packed:,}, over {RATIO} times as much; this is not text, unpack it where you '
        'trust it'
      )


class _Bounded(io.RawIOBase):
  """A stream that spends allowances. `length` is the number of bytes that it must have."""

  def __init__(self, stream, where: str, *allowances: _Allowance, length: int | None = None):
    self._stream, self.where, self._allowances = stream, where, allowances
    self._length, self._seen = length, 0

  def readable(self) -> bool:
    return True

  def readinto(self, out) -> int:
    n = self._stream.readinto(out)
    self._seen += n
    for allowance in self._allowances:
      allowance.spend(n, self.where)
    if not n and len(out) and self._length not in (None, self._seen):
      raise EOFError(f'it has {self._seen} bytes, the archive says {self._length}')
    return n


def _check_name(name: str, where: str):
  """Refuses names that would lie outside a folder into which they were unpacked."""
  parts = name.split('/')
  if not name or name.startswith('/') or '..' in parts or re.match('[A-Za-z]:', name):
    raise ValueError(f'{where}: an absolute path, or one with .. or a drive, is not read')
  if '\\' in name or '\0' in name:
    raise ValueError(f'{where}: a name with a backslash or NUL is not read')


# ---- tar


class _Header(tarfile.TarInfo):
  """A header that says why the next one cannot be read; the library takes most faults for the end
  of the archive.
  """

  @classmethod
  def frombuf(cls, buf, encoding, errors):
    found = super().frombuf(buf, encoding, errors)
    if found.size < 0 or (found.type in _EXTENDED and found.size > HEADER):
      raise tarfile.ReadError(f'a header of {found.size} bytes; at most {HEADER} are read')
    return found

  @classmethod
  def fromtarfile(cls, tar):
    try:
      return super().fromtarfile(tar)
    except tarfile.EOFHeaderError:  # a block of zeros: the end
      while block := tar.fileobj.read(1 << 16):
        if block.strip(b'\0'):
          raise tarfile.ReadError('data behind its end; are several archives joined?') from None
      raise
    except tarfile.EmptyHeaderError:
      raise tarfile.ReadError('it is cut off: the block that ends an archive is missing') from None
    except _TooMuch:
      raise
    except (tarfile.HeaderError, ValueError, OverflowError, RecursionError) as e:
      raise tarfile.ReadError(f'a header at byte {tar.offset} cannot be read ({e})') from None


def _tar(file: pathlib.Path):
  """(name, bytes, stream or None for a folder) of each member."""
  allowance = _Allowance(file.stat().st_size)
  with _files.open_bytes(file) as packed:
    raw = _Bounded(packed, str(file), allowance)
    with _files.reading(str(file)):
      tar = tarfile.open(fileobj=raw, mode='r|', tarinfo=_Header)
    while True:
      with _files.reading(str(file)):
        member = tar.next()
      if member is None:
        return
      tar.members = []  # else it keeps all of them
      raw.where = f'{file}, member {brief(member.name)}'
      if member.isdir():
        yield member.name + '/', 0, None
        continue
      kind = _tar_kind(member)
      if kind:
        raise ValueError(f'{raw.where} is {kind}; only regular files are read')
      if member.size > allowance.left:
        allowance.spend(member.size, raw.where)
      yield member.name, member.size, tar.extractfile(member)


def _tar_kind(member: tarfile.TarInfo) -> str:
  """What a member is that is not read, or ''."""
  kinds = {
    'a sparse file': member.issparse(),
    'a symbolic link': member.issym(),
    'a hard link': member.islnk(),
    'a device or pipe': member.isdev(),
    'of an unknown kind': not member.isreg(),
    f'of {member.size} bytes': member.size < 0,
  }
  return next((kind for kind, found in kinds.items() if found), '')


# ---- zip


@contextlib.contextmanager
def _opening(where: str):
  """`reading`, also for what the library raises on headers of a later version, or of no sense."""
  with _files.reading(where):
    try:
      yield
    except (NotImplementedError, ValueError, struct.error) as e:
      raise zipfile.BadZipFile(str(e)) from None


def _zip(file: pathlib.Path):
  """(name, packed bytes, stream or None for a folder) of each member."""
  allowance = _Allowance(file.stat().st_size)
  with _opening(str(file)):
    archive = zipfile.ZipFile(file)
  with archive:
    for info in archive.infolist():
      name = info.orig_filename  # `filename` ends at a NUL
      where = f'{file}, member {brief(name)}'
      mode = info.external_attr >> 16
      if info.flag_bits & 0x41:
        raise ValueError(f'{where} is encrypted; unpack it')
      if stat.S_IFMT(mode) and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        link = 'a symbolic link' if stat.S_ISLNK(mode) else 'a device or pipe'
        raise ValueError(f'{where} is {link}; only regular files are read')
      if name.endswith('/'):
        yield name, 0, None
        continue
      if info.compress_type not in _PACKED:
        raise ValueError(
          f'{where} is packed by method {info.compress_type}; stored, deflate, bzip2 and lzma are '
          'read'
        )
      _Allowance(info.compress_size).spend(info.file_size, where)
      allowance.spend(info.file_size, where)
      with _opening(where):
        packed = archive.open(info)
      with packed:
        raw = _Bounded(packed, where, length=info.file_size)
        yield name, info.file_size, io.BufferedReader(raw)
