"""JSON lines: one object a line, its text in one field; plain or compressed (.gz, .xz, .bz2, .zst).
Blank lines are skipped.

`where=('lang', 'en')` keeps the objects whose field `lang` is 'en'.
"""

import dataclasses

from lmjax.data.sources import _files
from lmjax.data.sources import _json
from lmjax.registry import register

SUFFIXES = ('.jsonl', '.json', '.ndjson')


@register('source')
@dataclasses.dataclass(frozen=True)
class Jsonl:
  """JSON-lines files: path is a file, a folder, a pattern or a tuple of them; each line's `field`
  is a document.
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
    return _files.fingerprint(_files.find(self.path, SUFFIXES), 'jsonl', self.field, self.where)

  def __iter__(self):
    for file in _files.find(self.path, SUFFIXES):
      with _files.open_bytes(file) as lines:
        try:
          for n, line in enumerate(lines, 1):
            if line.strip():
              record = _json.parse(line, f'{file}, line {n}')
              if self.where is None or record.get(self.where[0]) == self.where[1]:
                yield _json.text_of(record, self.field, f'{file}, line {n}')
        except _files.damage() as e:
          raise ValueError(f'{file} is damaged or not {file.suffix[1:]}: {e}') from None
