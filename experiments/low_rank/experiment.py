"""Matrices of a quarter of the rank: do restarts bring them nearer to full rank?

  python -m lmjax.experiment run experiments/low_rank --scale=cpu

Glentis et al., 2025 (arXiv:2505.22922): every 200 of some 10,000 updates the factors are split anew
(refactor) and Adam begins anew (reset); both together did best, the reset alone nearly so. Here
every 100 of 800. The decay is 0, as theirs.
"""

from lmjax.experiment import Arm
from lmjax.experiment import Better
from lmjax.experiment import Experiment
from lmjax.experiment import Scale

CPU = {
  'model.width': 64,
  'model.depth': 3,
  'model.unroll': 3,
  'model.mixer.head_dim': 32,
  'model.linear': 'low_rank(rank=16)',
  'schedule': 'cosine(warmup=0.25, end=0.1)',
  'eval.every': 0,
  'checkpoint_every': 400,
  'sample.every': 0,
  'sample.tokens': 0,
  'tensorboard': False,
  'report': False,
}
RATES = {'peak_lr': (3e-3, 1e-2, 3e-2)}
ADAM, EVERY = 'adam(b2=0.95)', 100


def get_experiment():
  reset = f'split(matrix=reset(inner={ADAM}, every={EVERY}), rest={ADAM})'
  arm = lambda name, changes, claim=None: Arm(name, changes, RATES, claim)
  return Experiment(
    title='Restarts of low-rank matrices',
    source='Claims: arXiv:2505.22922, see `lmjax/optim/refactor.py`, `lmjax/optim/reset.py`.',
    base='quickstart',
    fields=('optim', 'peak_lr', 'model.linear'),
    baseline=arm('low_rank', {'optim': f'clip() | {ADAM}'}),
    treatments=(
      arm('refactor', {'optim': f'clip() | {ADAM} | refactor(every={EVERY})'}, Better()),
      arm('reset', {'optim': f'clip() | {reset}'}, Better()),
      arm('restarts', {'optim': f'clip() | {reset} | refactor(every={EVERY})'}, Better()),
      arm('full_rank', {'optim': f'clip() | {ADAM}', 'model.linear': 'dense()'}, Better()),
    ),
    changes=CPU,
    scales={'cpu': Scale(budgets=(800,), hours=1)},
  )
