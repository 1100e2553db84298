"""JSON lines: one object a line, its text in one field; plain or compressed (.gz, .xz, .bz2, .zst).
Blank lines are skipped.

An archive (.tar, .tar.gz, .tgz, .tar.xz, .tar.bz2, .tar.zst, .zip) stands for its members that end
in .jsonl, .json or .ndjson, plain or compressed, in their order; they are read as streams and never
unpacked to disk. What an archive may hold is in `_archives.py`. A folder does not stand for the
archives in it; name them, as in jsonl(path='shards/*.tar.zst').

`where=('lang', 'en')` keeps the objects whose field `lang` is 'en'.
"""

import dataclasses

from lmjax.data.sources import _archives
from lmjax.data.sources import _files
from lmjax.data.sources import _json
from lmjax.registry import register

SUFFIXES = ('.jsonl', '.json', '.ndjson')


@register('source')
@dataclasses.dataclass(frozen=True)
class Jsonl:
  """JSON-lines files: path is a file, an archive, a folder, a pattern or a tuple of them; each
  line's `field` is a document.
  """

  path: str | tuple
  field: str = 'text'
  where: tuple | None = None

  @staticmethod
  def check(path, field, where):
    del path, field
    if where is not None and (len(where) != 2 or not isinstance(where[0], str)):
      raise ValueError(f"where={where!r}: a field and its value is expected, as in ('lang', 'en')")

  def fingerprint(self) -> str:
    files = _files.find(self.path, SUFFIXES)
    return _files.fingerprint(files, 'jsonl', self.field, self.where, *_archives.marks(files))

  def __iter__(self):
    for place, lines in _archives.streams(_files.find(self.path, SUFFIXES), SUFFIXES):
      with _files.reading(place):
        for n, line in enumerate(lines, 1):
          if line.strip():
            record = _json.parse(line, f'{place}, line {n}')
            if self.where is None or record.get(self.where[0]) == self.where[1]:
              yield _json.text_of(record, self.field, f'{place}, line {n}')
