"""Plain text files, compressed (.gz, .xz, .bz2, .zst) or not. Each file is one document, or several
split at a separator.

The separator itself is dropped; line ends are kept as they are. With encoding=None documents are
raw bytes (for byte tokenizers).
"""

import dataclasses

from lmjax.data.sources import _files
from lmjax.registry import register

SUFFIXES = ('.txt', '.text', '.md', '.tokens', '.xml')


@register('source')
@dataclasses.dataclass(frozen=True)
class Text:
  """Text files: path is a file, a folder, a pattern such as 'books/**/*.txt', or a tuple of
  them.
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
    return _files.fingerprint(
      _files.find(self.path, SUFFIXES), 'text', self.separator, self.encoding
    )

  def __iter__(self):
    for file in _files.find(self.path, SUFFIXES):
      data = _files.read_bytes(file)
      if self.encoding is None:
        yield from [data] if self.separator is None else data.split(self.separator.encode('utf-8'))
        continue
      text = _files.decode(data, file, self.encoding)
      yield from [text] if self.separator is None else text.split(self.separator)
