"""An experiment whose runs cost nothing: an engine that computes each result from the config."""

import math

import jax
import optax

from lmjax.experiment import Arm
from lmjax.experiment import Better
from lmjax.experiment import Experiment
from lmjax.experiment import Faster
from lmjax.experiment import Scale

TINY = {
  'model.width': 16,
  'model.depth': 1,
  'model.unroll': 1,
  'model.mixer.head_dim': 8,
  'data.length': 16,
  'batch_tokens': 128,
  'eval.every': 0,
  'eval.batches': 2,
  'sample.every': 0,
  'sample.tokens': 0,
  'tensorboard': False,
  'report': False,
}
GRID = {'peak_lr': (1e-3, 1e-2, 1e-1)}


def experiment(**changes) -> Experiment:
  given = dict(
    title='A comparison',
    source='nobody',
    base='quickstart',
    fields=('optim', 'peak_lr'),
    baseline=Arm('adam', {'optim': 'adam()'}, GRID),
    treatments=(
      Arm('lion', {'optim': 'lion()'}, GRID, Faster(1.5)),
      Arm('sgd', {'optim': 'sgd()'}, GRID, Better()),
    ),
    changes=TINY,
    scales={'cpu': Scale((50, 100), baseline_budgets=(25, 200), hours=8)},
  )
  return Experiment(**(given | changes))


def loss(arm: str, lr: float, steps: int, seed: int) -> float:
  """Lowest at a rate of 0.01; lion needs a third of the steps, sgd is bad."""
  effective = steps * (3.0 if arm == 'lion' else 1.0)
  worse = {'sgd': 0.5}.get(arm, 0.0)
  return 4 - 0.3 * math.log(effective) + 0.1 * abs(math.log10(lr) + 2) + worse + 0.002 * seed


class Engine:
  """outcomes: trial -> record, or None for the usual one. Keeps what it ran."""

  def __init__(self, outcomes=lambda trial: None):
    self.outcomes, self.ran = outcomes, []

  def run(self, trials, runs, measure):
    for t in trials:
      self.ran.append(t)
      yield t, self.outcomes(t) or record(t)

  def stop(self):
    pass


def record(t, **changes):
  value = loss(t.arm, t.point['peak_lr'], t.steps, t.seed)
  usual = dict(
    status='done',
    message='',
    value=value,
    loss=value,
    tokens=128 * t.steps,
    step_time=0.01,
    memory=10**8,
    state_bytes=8.0,
    parameters=1000,
    seconds=2.0,
    cpu_seconds=3.0,
    attempts=1,
    curve=[],
    versions=dict(device='cpu', jax='0'),
  )
  return usual | changes


def count(lines):
  """A measure."""
  return float(len(lines))


def within(n):
  """A measure that closes over a number."""

  def measure(lines):
    return count(lines) - n

  return measure


def nan():
  """An optimizer part whose updates are NaN."""
  return optax.stateless(lambda updates, params: jax.tree.map(lambda u: u * math.nan, updates))
