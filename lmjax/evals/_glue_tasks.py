"""The tasks of GLUE (Wang et al., 2018, arXiv:1804.07461), and the files that they come in.

Files are those of the GLUE distribution, `RTE/train.tsv`, or lie flat, `RTE.train.tsv`; `.jsonl` in
place of `.tsv` holds the fields of the Hub's data set `glue`, a label being its index or its word.
Each may be compressed. TSV has no quoting: a quotation mark is text. The first line names the
columns, but in CoLA, which has no such line; a byte order mark is left out.

Test files are not read: they have no labels.
"""

import dataclasses
import math
import os
import pathlib
from typing import Any, Iterator, NamedTuple, Sequence

from lmjax import files
from lmjax.evals import _paths

RANGE = (0.0, 5.0)  # of STS-B's labels
BROKEN = 1e-3  # share of a file's rows that may be broken, in the one task where some are


@dataclasses.dataclass(frozen=True)
class Task:
  """What a task is and how its files look.

  folder: its name in the distribution. columns, label: of a TSV, by name; fields: of a .jsonl, the
    label being `label`. labels: the classes in the order of their indices, none for a number.
  metrics: names from `_glue_metrics`. dev: the development splits. header: the columns of a TSV
    that does not name them. broken: whether the distribution's own files have rows cut in two.
  """

  folder: str
  columns: tuple[str, ...]
  label: str
  fields: tuple[str, ...]
  labels: tuple[str, ...] = ('0', '1')
  metrics: tuple[str, ...] = ('accuracy',)
  dev: tuple[str, ...] = ('dev',)
  header: tuple[str, ...] = ()
  broken: bool = False

  @property
  def outputs(self) -> int:
    """Outputs of the head: one a class, or the number itself."""
    return len(self.labels) or 1


ONE, TWO, ASKED = ('sentence',), ('sentence1', 'sentence2'), ('question1', 'question2')
ENTAILS = ('entailment', 'not_entailment')
TASKS = {
  'cola': Task(
    'CoLA',
    ONE,
    'label',
    ONE,
    metrics=('matthews',),
    header=('source', 'label', 'mark', 'sentence'),
  ),
  'sst2': Task('SST-2', ONE, 'label', ONE),
  'mrpc': Task('MRPC', ('#1 String', '#2 String'), 'Quality', TWO, metrics=('f1', 'accuracy')),
  'qqp': Task('QQP', ASKED, 'is_duplicate', ASKED, metrics=('f1', 'accuracy'), broken=True),
  'stsb': Task('STS-B', TWO, 'score', TWO, labels=(), metrics=('pearson', 'spearman')),
  'mnli': Task(
    'MNLI',
    TWO,
    'gold_label',
    ('premise', 'hypothesis'),
    labels=('entailment', 'neutral', 'contradiction'),
    dev=('dev_matched', 'dev_mismatched'),
  ),
  'qnli': Task('QNLI', ('question', 'sentence'), 'label', ('question', 'sentence'), labels=ENTAILS),
  'rte': Task('RTE', TWO, 'label', TWO, labels=ENTAILS),
  'wnli': Task('WNLI', TWO, 'label', TWO),
}
USUAL = tuple(name for name in TASKS if name != 'wnli')


class Example(NamedTuple):
  """texts: one or two. label: index of the class, or a number."""

  texts: tuple[str, ...]
  label: int | float


class Split(NamedTuple):
  """Examples of one file, and how many broken rows were left out of them."""

  examples: list[Example]
  skipped: int


# ---- files


def folder(path: str) -> pathlib.Path:
  """The folder of the tasks' files: `path`, or glue/ in the data folder of evals. Raises
  ValueError.
  """
  if path:
    found = pathlib.Path(files.expanded(path))
  else:
    root = next((os.environ[v] for v in _paths.VARIABLES if os.environ.get(v)), None)
    if root is None:
      raise ValueError(
        "path='' and LMJAX_DATA is not set: give the folder of the GLUE files as path, or set "
        'LMJAX_DATA to the folder that holds eval/glue'
      )
    found = pathlib.Path(root) / 'eval' / 'glue'
  if not found.is_dir():
    raise ValueError(f'path={path!r}: there is no folder {found}')
  return found


def find(where: pathlib.Path, task: Task, split: str) -> pathlib.Path:
  """The file of a split. Raises ValueError with all names that it may have."""
  names = [f'{task.folder}{s}{split}.{kind}' for s in '/.' for kind in ('tsv', 'jsonl')]
  for name in names:
    for end in _paths.ENDINGS:
      if (where / (name + end)).is_file():
        return where / (name + end)
  raise ValueError(
    f'{where} has no {split} file of {task.folder}; one of {", ".join(names)} is expected, plain '
    f'or with {", ".join(_paths.ENDINGS[1:])}'
  )


def read(path: pathlib.Path, task: Task, limit: int | None = None) -> Split:
  """The examples of a file, the first `limit` of them. Raises ValueError naming file and line."""
  rows, skipped, out = _jsonl if '.jsonl' in path.name else _tsv, 0, []
  for place, row in rows(path, task):
    if limit is not None and len(out) == limit:
      break
    if isinstance(row, str):
      if not task.broken:
        raise ValueError(f'{path}, {place}: {row}')
      skipped += 1
      continue
    try:
      out.append(Example(tuple(row[0]), _label(row[1], task)))
    except ValueError as e:
      raise ValueError(f'{path}, {place}: {e}') from None
  if not out:
    raise ValueError(f'{path} has no examples')
  if skipped > BROKEN * len(out) + 1:
    raise ValueError(
      f'{path}: {skipped} rows are broken beside {len(out)} whole ones; at most one in '
      f'{1 / BROKEN:.0f} is expected'
    )
  return Split(out, skipped)


Row = tuple[str, tuple[Sequence[str], Any] | str]
"""(which line, (texts, label)), or what is wrong with the line."""


def _tsv(path: pathlib.Path, task: Task) -> Iterator[Row]:
  lines = _paths.text(path).removeprefix('\ufeff').split('\n')  # other line ends may be text
  lines = [(n, line.removesuffix('\r')) for n, line in enumerate(lines, 1)]
  lines = [(n, line) for n, line in lines if line.strip()]
  names = list(task.header) or lines.pop(0)[1].split('\t')
  wanted = (*task.columns, task.label)
  missing = [c for c in wanted if c not in names]
  if missing:
    raise ValueError(
      f'{path}, line 1: no column {missing[0]!r}; {task.folder} has {", ".join(wanted)}, this '
      f'file {", ".join(names)[:200]}'
    )
  *places, last = (names.index(c) for c in wanted)
  for n, line in lines:
    cells = line.split('\t')
    if len(cells) != len(names):
      yield f'line {n}', f'{len(cells)} columns, {len(names)} are expected'
    else:
      yield f'line {n}', ([cells[i] for i in places], cells[last])


def _jsonl(path: pathlib.Path, task: Task) -> Iterator[Row]:
  for n, row in enumerate(_paths.rows(path, (*task.fields, 'label')), 1):
    texts = [row[f] for f in task.fields]
    if all(isinstance(t, str) for t in texts):
      yield f'item {n}', (texts, row['label'])
    else:
      raise ValueError(f'{path}, item {n}: {", ".join(task.fields)} must be text')


def _label(given: Any, task: Task) -> int | float:
  """The label of a row: a word or an index of the task's, or a number. Raises ValueError."""
  if not task.labels:
    return _number(given)
  if given in task.labels:
    return task.labels.index(given)
  if type(given) is int and 0 <= given < len(task.labels):
    return given
  raise ValueError(f'the label {given!r} is none of {", ".join(task.labels)}')


def _number(given: Any) -> float:
  try:
    value = float(given)
  except (TypeError, ValueError):
    value = math.nan
  if not RANGE[0] <= value <= RANGE[1]:
    raise ValueError(f'the label {given!r} is no number from {RANGE[0]:g} to {RANGE[1]:g}')
  return value
