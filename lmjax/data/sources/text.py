"""Plain text files, compressed (.gz, .xz, .bz2, .zst) or not. Each file is one document, or several
split at a separator.

The separator itself is dropped; line ends are kept as they are. With encoding=None documents are
raw bytes (for byte tokenizers).

An archive (.tar, .tar.gz, .tgz, .tar.xz, .tar.bz2, .tar.zst, .zip) stands for its members, in their
order: every regular file but hidden ones, read as a stream and never unpacked to disk. What an
archive may hold is in `_archives.py`. A folder does not stand for the archives in it; name them, as
in text(path='books/*.zip').
"""

import dataclasses

from lmjax.data.sources import _archives
from lmjax.data.sources import _files
from lmjax.registry import register

SUFFIXES = ('.txt', '.text', '.md', '.tokens', '.xml')


@register('source')
@dataclasses.dataclass(frozen=True)
class Text:
  """Text files: path is a file, an archive, a folder, a pattern such as 'books/**/*.txt', or a
  tuple of them.
  """

  path: str | tuple
  separator: str | None = None
  encoding: str | None = 'utf-8'

  @staticmethod
  def check(path, separator, encoding):
    del path, encoding
    if separator == '':
      raise ValueError(
        "separator='': text such as '<|endoftext|>' is expected, or None for one document a file"
      )

  def fingerprint(self) -> str:
    files = _files.find(self.path, SUFFIXES)
    return _files.fingerprint(files, 'text', self.separator, self.encoding, *_archives.marks(files))

  def __iter__(self):
    for where, stream in _archives.streams(_files.find(self.path, SUFFIXES)):
      with _files.reading(where):
        data = stream.read()
      if self.encoding is None:
        yield from [data] if self.separator is None else data.split(self.separator.encode('utf-8'))
        continue
      text = _files.decode(data, where, self.encoding)
      yield from [text] if self.separator is None else text.split(self.separator)
