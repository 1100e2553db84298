"""Runs GLUE's tasks on one model: the choice of lr and batch, the seeds, scores and their names."""

import dataclasses
import math
from typing import Any, NamedTuple, Sequence

import numpy as np

from lmjax import kinds
from lmjax import progress
from lmjax.evals import _classifier
from lmjax.evals import _finetune
from lmjax.evals import _glue_metrics
from lmjax.evals import _glue_tasks
from lmjax.evals import _pairs
from lmjax.evals import _scores
from lmjax.registry import nearest

TUNING = 1000  # the first of the seeds by which a pair of lr and batch is chosen
SETTINGS = tuple(f.name for f in dataclasses.fields(_finetune.Settings))
TOLD = ('warmup', 'decay', 'b1', 'b2', 'eps', 'clip', 'layer_decay', 'head', 'dropout')


class Found(NamedTuple):
  """What one fine-tuning gave: the task's score, and its metrics by name."""

  key: float
  metrics: dict[str, float]


FAILED = Found(-np.inf, {})


def named(tasks: str) -> dict[str, _glue_tasks.Task]:
  """The tasks of 'a,b'. Raises ValueError for a name that is none, or comes twice."""
  names = [n.strip() for n in tasks.split(',')]
  for n in names:
    if n not in _glue_tasks.TASKS:
      raise ValueError(
        f'no task {n!r}{nearest(n, _glue_tasks.TASKS)} There are: {", ".join(_glue_tasks.TASKS)}'
      )
    if names.count(n) > 1:
      raise ValueError(f'tasks={tasks!r}: {n} is named twice')
  return {n: _glue_tasks.TASKS[n] for n in names}


def several(values) -> tuple:
  return values if isinstance(values, tuple) else (values,)


class Data(NamedTuple):
  """Rows to train on and of each dev split, and how many broken rows all files had."""

  train: _finetune.Rows
  dev: tuple[_finetune.Rows, ...]
  skipped: int


class Runner:
  """One eval of one model; `part` has the arguments of `GlueFinetuning`."""

  def __init__(self, part, lm, length: int):
    self._part, self._lm, self._tuners = part, lm, {}
    self._marks = _pairs.marks(lm.tokenizer)
    how = {k: getattr(part, k) for k in SETTINGS} | dict(length=length)
    self._settings = _finetune.Settings(**how)
    self._where = _glue_tasks.folder(part.path)

  def scores(self) -> list[kinds.Score]:
    """The average over the tasks that have a score, then every metric."""
    values, without, out, lost = {}, [], [], 0
    for name, task in named(self._part.tasks).items():
      found, diverged = self._task(name, task)
      out += found
      value = sum(s.value for s in found) / len(found)
      if math.isnan(value):
        without.append(name)
      else:
        values[name], lost = value, lost + diverged
    average = sum(values.values()) / len(values) if values else math.nan
    of = f'average of {"+".join(values) or "no task"}'
    how = dict(diverged=lost or None, without='+'.join(without) or None)
    label = self._label(of, self._part.seeds if values else 0, **how)
    return [kinds.Score(label, average, None), *out]

  def _task(self, name: str, task: _glue_tasks.Task) -> tuple[list[kinds.Score], int]:
    """A score for each metric, the median over the seeds that did not diverge, NaN where all did;
    and how many did.
    """
    data = self._data(task)
    how = dict(n=sum(len(d.ids) for d in data.dev), train=len(data.train.ids))
    how['skipped'] = data.skipped or None
    pair, runs, lost = self._chosen(name, task, data), [], 0
    if pair is None:
      how['diverged'] = 'every pair'
    else:
      tried = [self._one(name, task, data, *pair, seed) for seed in range(self._part.seeds)]
      runs = [r for r in tried if r is not FAILED]
      lost = len(tried) - len(runs)
      how |= dict(lr=pair[0], batch=pair[1], diverged=lost or None)
    if not runs:
      progress.say(f'{name}: every training diverged, hence it has no score; give a smaller lr')
    how['error'] = 'sd of seeds' if len(runs) > 1 else None
    out = []
    for metric in metrics_of(task):
      values = [r.metrics[metric] for r in runs]
      spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
      label = self._label(f'{name}/{metric}', len(runs), **how)
      out.append(kinds.Score(label, float(np.median(values)) if values else math.nan, spread))
    return out, lost

  def _chosen(self, name: str, task, data: Data) -> tuple[float, int] | None:
    """The pair of lr and batch with the best median score on dev over the tuning seeds; None where
    all of them diverged.
    """
    pairs = [(lr, size) for lr in several(self._part.lr) for size in several(self._part.batch)]
    if len(pairs) == 1:
      return pairs[0]
    medians = []
    for lr, size in pairs:
      seeds = range(TUNING, TUNING + self._part.tuning_seeds)
      tried = [self._one(name, task, data, lr, size, seed).key for seed in seeds]
      medians.append(float(np.median(tried)))
    return None if max(medians) == -np.inf else pairs[int(np.argmax(medians))]

  def _one(self, name: str, task, data: Data, lr: float, size: int, seed: int) -> Found:
    """One fine-tuning, FAILED where it diverged."""
    where = f'{name}, lr={lr}, batch={size}, seed {seed}'
    try:
      found = self._tuner(task).tune(
        data.train,
        lr=lr,
        size=size,
        seed=seed,
        judge=lambda predict: judged(task, [(predict(d.ids), d.labels) for d in data.dev]),
      )
    except _finetune.Diverged as e:
      progress.say(f'{where}: diverged, {e}')
      return FAILED
    told = ', '.join(f'{k} {v:.4f}' for k, v in found.metrics.items())
    progress.say(f'{where}: {told} on dev')
    return found

  def _tuner(self, task: _glue_tasks.Task) -> _finetune.Tuner:
    """Tasks with the same kind of output share their programs."""
    key = task.outputs, not task.labels
    if key not in self._tuners:
      lm = self._lm
      self._tuners[key] = _finetune.Tuner(lm.architecture, lm.variables, self._settings, *key)
    return self._tuners[key]

  def _data(self, task: _glue_tasks.Task) -> Data:
    splits = [
      _glue_tasks.read(_glue_tasks.find(self._where, task, split), task, self._part.limit)
      for split in ('train', *task.dev)
    ]
    train, *dev = (self._rows(task, s.examples) for s in splits)
    return Data(train, tuple(dev), sum(s.skipped for s in splits))

  def _rows(self, task, examples: Sequence[_glue_tasks.Example]) -> _finetune.Rows:
    encode, length = self._lm.tokenizer.encode, self._settings.length
    packed = lambda e: _pairs.packed(
      [encode(t) for t in e.texts], self._marks, length, self._part.packing
    )
    labels = np.asarray([e.label for e in examples], np.int32 if task.labels else np.float32)
    return _finetune.Rows([packed(e) for e in examples], labels)

  def _label(self, name: str, seeds: int, **how: Any) -> str:
    """The name with all that the number depends on; seeds: those it is the median of."""
    p, pairs = self._part, len(several(self._part.lr)) * len(several(self._part.batch))
    back = _classifier.looks_back(self._lm.architecture.model)
    cls, sep = self._marks.names
    usual = {f.name: f.default for f in dataclasses.fields(p)}
    how |= dict(
      split='dev',
      value=f'median of {seeds} seeds' if seeds > 1 else ('no seed', 'one seed')[seeds],
      chosen=f'best of {pairs} pairs on dev' if pairs > 1 else None,
      tuning_seeds=p.tuning_seeds if pairs > 1 else None,
      epochs=p.epochs,
      keep=p.keep,
      **{k: getattr(p, k) for k in TOLD if getattr(p, k) != usual[k]},
      length=self._settings.length,
      state='last' if back else 'first',
      packing=p.packing,
      cls=cls,
      sep=sep,
      token_types='none',
      limit=p.limit,
    )
    return _scores.label(name, None, **how)


def metrics_of(task: _glue_tasks.Task) -> list[str]:
  """Names of a task's metrics; with several dev splits that of the split follows the metric's."""
  return [m + _end(split) for split in task.dev for m in task.metrics]


def _end(split: str) -> str:
  return split.removeprefix('dev')  # '' or '_matched'


def judged(task: _glue_tasks.Task, found: Sequence[tuple[np.ndarray, np.ndarray]]) -> Found:
  """The metrics of each dev split's (outputs, labels), by the names of `metrics_of`."""
  metrics = {}
  for split, (z, labels) in zip(task.dev, found):
    given = np.argmax(z, axis=1) if task.labels else z[:, 0]
    metrics |= {m + _end(split): _glue_metrics.METRICS[m](given, labels) for m in task.metrics}
  return Found(sum(metrics.values()) / len(metrics), metrics)
