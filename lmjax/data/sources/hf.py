"""A Hugging Face dataset on this machine: a folder of `save_to_disk`, or Parquet, Arrow, CSV or
JSON files. Nothing is downloaded.
"""

import dataclasses
import pathlib

from lmjax import files as files_lib
from lmjax.data.sources import _files
from lmjax.data.sources import _json
from lmjax.registry import register

FORMATS = {
  '.parquet': 'parquet',
  '.arrow': 'arrow',
  '.csv': 'csv',
  '.json': 'json',
  '.jsonl': 'json',
}


@register('source')
@dataclasses.dataclass(frozen=True)
class Hf:
  """A local Hugging Face dataset; `field` holds the text, `split` names the part of a dataset that
  has several.
  """

  path: str
  field: str = 'text'
  split: str | None = None

  @property
  def _folder(self) -> pathlib.Path | None:
    folder = pathlib.Path(files_lib.expanded(self.path))
    saved = any((folder / n).is_file() for n in ('dataset_dict.json', 'state.json'))
    return folder if saved else None

  def fingerprint(self) -> str:
    if self._folder is not None:
      files = sorted(p for p in self._folder.rglob('*') if p.suffix in ('.arrow', '.json'))
    else:
      files = _files.find(self.path, tuple(FORMATS))
    return _files.fingerprint(files, 'hf', self.field, self.split)

  def _open(self):
    try:
      import datasets
    except ImportError:
      raise ValueError("hf(...) needs the datasets library: pip install 'lmjax[hub]'") from None
    if self._folder is not None:
      data = datasets.load_from_disk(str(self._folder))
      if isinstance(data, dict):
        return self._choose(data)
      if self.split is not None:
        raise ValueError(f'{self.path} has no splits; remove split={self.split!r}')
      return data
    files = _files.find(self.path, tuple(FORMATS))
    kinds = {FORMATS.get(f.suffix) for f in files}
    if len(kinds) != 1 or None in kinds:
      raise ValueError(
        f'path={self.path!r}: files of one kind out of {", ".join(FORMATS)} are expected, or a '
        'folder written '
        'by save_to_disk'
      )
    if self.split is not None:
      raise ValueError(f'{self.path} is a set of files without splits; remove split={self.split!r}')
    # Streaming reads the files where they are; otherwise they would be copied into a cache.
    return datasets.load_dataset(
      kinds.pop(), data_files=list(map(str, files)), split='train', streaming=True
    )

  def _choose(self, data):
    if self.split is None and len(data) == 1:
      return next(iter(data.values()))
    if self.split not in data:
      raise ValueError(f'split={self.split!r}: {self.path} has {", ".join(map(repr, data))}')
    return data[self.split]

  def __iter__(self):
    data = self._open()
    for n, record in enumerate(data):
      yield _json.text_of(record, self.field, f'{self.path}, row {n}')
