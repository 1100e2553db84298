"""Multiple choice by log-likelihood, zero-shot: the option with the largest log P(option | context)
is the answer.

  acc       argmax_a ll(a)                      acc_norm  argmax_a ll(a) / characters of a (the
  space in front not counted)

Ties go to the first option. Standard error sqrt(p (1 - p) / (n - 1)). acc_norm is left out where
options are letters, yes and no, or share their text. Conventions and prompts of
lm-evaluation-harness; `_formats.py` has them by task.
"""

import dataclasses
from typing import Sequence

import numpy as np

from lmjax import kinds
from lmjax.evals import _formats
from lmjax.evals import _paths
from lmjax.evals import _scores
from lmjax.registry import nearest
from lmjax.registry import register


@register('eval')
@dataclasses.dataclass(frozen=True)
class MultipleChoice:
  """Accuracy of `task` (hellaswag, piqa, arc_easy, ...) over `path`, '' being the task's file in
  the data folder.
  """

  task: str
  path: str = ''
  limit: int | None = None

  @staticmethod
  def check(task, path, limit):
    if task not in _formats.FORMATS:
      raise ValueError(
        f'no task {task!r}{nearest(task, _formats.FORMATS)} There are: '
        f'{", ".join(_formats.FORMATS)}'
      )
    _paths.check_limit(limit)

  def __post_init__(self):
    _paths.find(self.path, _formats.FORMATS[self.task].file)  # told before any work

  def suits(self, lm: kinds.LM):
    _scores.likelihoods(lm)

  def run(self, lm: kinds.LM) -> list[kinds.Score]:
    """acc, and acc_norm where it means something. Raises ValueError naming the file, the line and
    the field.
    """
    form = _formats.FORMATS[self.task]
    path = _paths.find(self.path, form.file)
    items = read(form, path, self.limit)
    found = iter([p for p, _ in lm.loglikelihood([pair for i in items for pair in i.pairs])])
    scores = [[next(found) for _ in i.pairs] for i in items]
    how = dict(file=_paths.stem(path), n=len(items))
    out = [
      _scores.shares(
        f'{self.task}/acc', [pick(s) == i.gold for s, i in zip(scores, items)], lm, **how
      )
    ]
    if form.norm:
      hits = [pick(s, i.sizes) == i.gold for s, i in zip(scores, items)]
      out.append(_scores.shares(f'{self.task}/acc_norm', hits, lm, **how))
    return out


def pick(scores: Sequence[float], sizes: Sequence[int] | None = None) -> int:
  """The best option, the first among equals; per character where sizes are given. An empty option
  counts as one character.
  """
  values = np.asarray(scores, np.float64)
  return int(np.argmax(values if sizes is None else values / np.maximum(sizes, 1)))


def read(form: _formats.Format, path, limit: int | None) -> list[_formats.Item]:
  """The items of a file. Raises ValueError naming the file and the item."""
  out = []
  for n, row in enumerate(_paths.rows(path, form.fields, limit), 1):
    try:
      out.append(form.read(row))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as e:
      raise ValueError(f'{path}, item {n}: not as the task needs it: {e}') from None
  return out
