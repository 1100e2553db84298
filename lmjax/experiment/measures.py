"""Numbers of a finished run, from the lines of its metrics; lower is better.

A measure is a function lines -> float; NaN where the run does not have it, which counts as failed.
"""

import math
from typing import Any, Callable, Sequence

import numpy as np

Lines = Sequence[dict[str, Any]]


def final_loss(lines: Lines) -> float:
  """The validation loss at the end of the run, nats a token."""
  evals = [x for x in lines if x['kind'] == 'eval']
  return float(evals[-1]['loss']) if evals else math.nan


def train_loss(lines: Lines) -> tuple[np.ndarray, np.ndarray]:
  """(steps, losses) of the logged training steps."""
  train = [x for x in lines if x['kind'] == 'train']
  return np.array([x['step'] for x in train]), np.array([x['loss'] for x in train], float)


def excess_loss(at: Sequence[int], over: int) -> Callable[[Lines], float]:
  """How much disturbances at steps `at` cost: the training loss of the `over` steps behind each
  beyond the mean of the `over` steps before, averaged, nats a token.
  """

  def measure(lines: Lines) -> float:
    steps, losses = train_loss(lines)
    parts = []
    for s in at:
      before = losses[(steps > s - over) & (steps <= s)]
      behind = losses[(steps > s) & (steps <= s + over)]
      if not len(before) or not len(behind):
        return math.nan
      parts.append(behind.mean() - before.mean())
    return float(np.mean(parts))

  return measure


def spike_score(lines: Lines, window: int = 1000, deviations: float = 7.0) -> float:
  """The share of logged steps whose loss lies more than `deviations` standard deviations above the
  mean of the `window` logged steps before, at least 10 of them.
  """
  _, losses = train_loss(lines)
  spikes = [
    losses[i] > np.mean(w := losses[max(0, i - window) : i]) + deviations * np.std(w)
    for i in range(10, len(losses))
  ]
  return float(np.mean(spikes)) if spikes else math.nan


def summary(lines: Lines) -> dict[str, Any]:
  """What every record keeps: end of run, curve, times; None for what is absent or not finite."""
  evals = [x for x in lines if x['kind'] == 'eval']
  train = [x for x in lines if x['kind'] == 'train']
  times = [x['step_time'] for x in train if 'step_time' in x]
  finite = lambda x: x if x is not None and math.isfinite(x) else None
  model = next((x for x in lines if x['kind'] == 'model'), {})
  return dict(
    parameters=model.get('parameters'),
    state_bytes=model.get('state_bytes'),
    loss=finite(final_loss(lines)),
    loss_stderr=finite(evals[-1].get('loss_stderr')) if evals else None,
    tokens=evals[-1].get('tokens') if evals else None,
    curve=[[x['step'], finite(x['loss'])] for x in evals],
    step_time=float(np.median(times)) if times else None,
    skipped=train[-1].get('skipped') if train else None,
  )
