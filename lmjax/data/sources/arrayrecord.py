"""ArrayRecord files, read through grain. A record is UTF-8 text, or with `field` a JSON object that
holds text in that field.
"""

import dataclasses

from lmjax.data.sources import _files
from lmjax.data.sources import _json
from lmjax.registry import register

SUFFIXES = ('.array_record', '.arrayrecord')


@register('source')
@dataclasses.dataclass(frozen=True)
class ArrayRecord:
  """ArrayRecord files of text, or of JSON objects when `field` is given; path is a file, folder,
  pattern or tuple.
  """

  path: str | tuple
  field: str | None = None

  def fingerprint(self) -> str:
    return _files.fingerprint(_files.find(self.path, SUFFIXES), 'arrayrecord', self.field)

  def __iter__(self):
    import grain

    for file in _files.find(self.path, SUFFIXES):
      try:
        records = grain.sources.ArrayRecordDataSource([str(file)])
        count = len(records)
      except Exception as e:  # the library raises several kinds on a damaged file
        raise ValueError(f'{file} cannot be read as ArrayRecord: {e}') from None
      for n in range(count):
        where = f'{file}, record {n}'
        data = records[n]
        if self.field is None:
          yield _files.decode(data, where)
        else:
          yield _json.text_of(_json.parse(data, where), self.field, where)
