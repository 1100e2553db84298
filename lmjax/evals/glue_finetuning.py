"""GLUE by fine-tuning: a run's model with a new head, all weights trained on each task, dev scores.

  cola matthews; sst2, qnli, rte, wnli accuracy; mrpc, qqp f1 and accuracy; stsb pearson and
  spearman; mnli accuracy on dev_matched and on dev_mismatched

Wang et al., 2018 (arXiv:1804.07461); the defaults are the grid of BERT (Devlin et al., 2018,
arXiv:1810.04805). RoBERTa's (Liu et al., 2019, arXiv:1907.11692): lr=(1e-5, 2e-5, 3e-5), epochs=10,
keep="best", warmup=0.06, decay=0.1, b2=0.98, packing="roberta", clip=0.0, on rows of up to 512
tokens. ELECTRA (Clark et al., 2020, arXiv:2003.10555) adds layer_decay=0.8 or 0.9; its code has one
factor more between head and last layer.

Selection, the same for all tasks: every pair of lr and batch is tried with `tuning_seeds` seeds of
its own, and the pair with the best median task score on dev is taken, the first of equals; then
`seeds` other seeds are run with it. A score is their median, and its error their standard
deviation. The pair, and with keep="best" the epoch, are chosen on dev, so that scores are dev
scores and a little high; nothing is said of test. A task's score is the mean of its metrics; the
average is the unweighted mean of the scores of the tasks that have one, and its name lists them.

A seed whose training diverges is left out, and the score's name counts it (`diverged`). A task of
which every seed diverges, or in tuning every pair, scores NaN; the average names it as one that it
is not of (`without`).

Rows are [CLS] a [SEP] b [SEP], [CLS] being the tokenizer's bos and [SEP] its eos, or one for both
where it has one. A model with a mixer that looks only back is judged by the state of the last
[SEP], others by that of [CLS]. Models have no token types. Every task starts from the run's
parameters, never from those of another task; WNLI is left out unless named.
"""

import dataclasses
from typing import Literal

import numpy as np

from lmjax import kinds
from lmjax.evals import _classifier
from lmjax.evals import _finetune
from lmjax.evals import _glue_runner
from lmjax.evals import _glue_tasks
from lmjax.evals import _pairs
from lmjax.evals import _paths
from lmjax.registry import register


@register('eval')
@dataclasses.dataclass(frozen=True)
class GlueFinetuning:
  """Dev scores of `tasks` after fine-tuning.

  Args:
    path: folder of the tasks' files, '' for glue/ in the data folder. limit: rows of each file.
    lr, batch: one value, or those to choose from. length: tokens of a row at most; a model that was
      trained on shorter rows takes its own length.
    warmup: share of the updates. decay: of weights. clip: of the gradient's norm, 0 for none.
      dropout: on the state, besides the model's own. keep: the model after the last epoch, or after
      the best one on dev.
  """

  tasks: str = ','.join(_glue_tasks.USUAL)
  path: str = ''
  seeds: int = 5
  tuning_seeds: int = 1
  lr: float | tuple = (2e-5, 3e-5, 4e-5, 5e-5)
  batch: int | tuple = (16, 32)
  epochs: int = 3
  keep: Literal['last', 'best'] = 'last'
  warmup: float = 0.1
  decay: float = 0.01
  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-6
  clip: float = 1.0
  layer_decay: float = 1.0
  head: Literal['tanh', 'linear'] = 'tanh'
  dropout: float = 0.1
  length: int = 128
  packing: Literal['bert', 'roberta'] = 'bert'
  limit: int | None = None

  @staticmethod
  def check(tasks, lr, batch, limit, **how):
    _glue_runner.named(tasks)
    for key, values, kind in (('lr', lr, float), ('batch', batch, int)):
      for v in _glue_runner.several(values) or [None]:
        if type(v) not in (int, kind) or not 0 < v < np.inf:
          what = 'a whole number' if kind is int else 'a number'
          raise ValueError(f'{key}={values!r}: {what} above 0, or a tuple of them, is expected')
    for key in ('seeds', 'tuning_seeds', 'epochs'):
      if how[key] < 1:
        raise ValueError(f'{key}={how[key]}: a positive number is expected')
    if not 0 < how['layer_decay'] <= 1:
      raise ValueError(f'layer_decay={how["layer_decay"]}: above 0 and at most 1 is expected')
    for key in ('warmup', 'dropout'):
      if not 0 <= how[key] < 1:
        raise ValueError(f'{key}={how[key]}: at least 0 and below 1 is expected')
    if how['length'] < _pairs.SHORTEST:
      raise ValueError(f'length={how["length"]}: at least {_pairs.SHORTEST} tokens are expected')
    _finetune.chain(_finetune.Settings(**{k: how[k] for k in _glue_runner.SETTINGS}).optim, {})
    _paths.check_limit(limit)

  def __post_init__(self):
    where = _glue_tasks.folder(self.path)
    for task in _glue_runner.named(self.tasks).values():
      for split in ('train', *task.dev):
        _glue_tasks.find(where, task, split)  # a missing file is told before any work

  def suits(self, lm: kinds.LM):
    if not all(hasattr(lm, k) for k in ('architecture', 'variables', 'length')):
      raise kinds.Unsupported('glue_finetuning trains the model, and this one gives no parameters')
    _classifier.check(lm.architecture.model)
    _pairs.marks(lm.tokenizer)
    asked = getattr(lm, 'prompts', None)
    if asked is not None and asked.task is not None:
      raise kinds.Unsupported(
        f'rows of sentences are plain text, which a model that learnt from rows of {asked.name} '
        'never saw; one that was trained on plain text is expected'
      )
    if self._length(lm) < _pairs.SHORTEST:
      raise kinds.Unsupported(
        f'glue_finetuning: the model sees {lm.length} tokens, at least {_pairs.SHORTEST} are needed'
      )

  def run(self, lm: kinds.LM) -> list[kinds.Score]:
    """The average first, then every metric. Raises ValueError naming the file and the line."""
    self.suits(lm)
    return _glue_runner.Runner(self, lm, self._length(lm)).scores()

  def _length(self, lm) -> int:
    return min(self.length, lm.length)
