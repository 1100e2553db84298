"""Thirteen optimizers against a tuned AdamW, on the bundled text.

  python -m lmjax.experiment run experiments/optimizers --scale=cpu

One small GPT, byte by byte, with an output matrix of its own (SCALE needs one). Every arm is tuned
over four rates at each budget; everything else is what its authors recommend, apart from intervals
and ranks, which follow the length and width of these runs.
"""

from lmjax.experiment import Arm
from lmjax.experiment import AsGood
from lmjax.experiment import Better
from lmjax.experiment import Experiment
from lmjax.experiment import Faster
from lmjax.experiment import Scale

CPU = {
  'model.width': 64,
  'model.depth': 3,
  'model.unroll': 3,
  'model.mixer.head_dim': 32,
  'model.embed': 'untied()',
  'eval.every': 0,
  'checkpoint_every': 200,
  'sample.every': 0,
  'sample.tokens': 0,
  'tensorboard': False,
  'report': False,
}


def rates(*values):
  return {'peak_lr': values}


USUAL = rates(1e-3, 3e-3, 1e-2, 3e-2)
MIDDLE = rates(3e-4, 1e-3, 3e-3, 1e-2)
LOW = rates(2e-4, 6e-4, 2e-3, 6e-3)
HIGH = rates(3e-3, 1e-2, 3e-2, 1e-1)
HIGHEST = rates(1e-2, 3e-2, 1e-1, 3e-1)
ADAM = 'adam(b2=0.99)'  # the recipe's


def get_experiment():
  arm = lambda name, optim, grid, claim=None: Arm(name, {'optim': optim}, grid, claim)
  return Experiment(
    title='Optimizers against a tuned AdamW',
    source='Claims: the papers named in `lmjax/optim/<method>.py`.',
    base='quickstart',
    fields=('optim', 'peak_lr'),
    baseline=arm('adamw', f'clip() | {ADAM} | decay(rate=0.1)', USUAL),
    treatments=(
      arm('lion', 'clip() | lion(b1=0.95, b2=0.98) | decay(rate=0.5)', LOW, AsGood(0.01)),
      arm('sophia_g', 'clip() | sophia_g() | decay(rate=0.2)', MIDDLE, Faster(2)),
      arm('sophia_h', 'clip() | sophia_h() | decay(rate=0.2)', MIDDLE, Faster(2)),
      arm(
        'muon', f'clip() | split(matrix=muon(), rest={ADAM}) | decay(rate=0.1)', HIGH, Faster(1.35)
      ),
      arm('scale', 'scale()', USUAL, AsGood(0.01)),
      arm('adagc', f'adagc() | {ADAM} | decay(rate=0.1)', USUAL, Better(0.015)),
      arm('adamp', 'clip() | adamp(b2=0.99, decay=decay(rate=0.1))', USUAL, Better()),
      arm('eight_bit', f'clip() | eight_bit(inner={ADAM}) | decay(rate=0.1)', USUAL, AsGood(0.01)),
      arm(
        'galore',
        'clip() | galore(inner=adam(b2=0.99, eps=1e-6), rank=16, gap=50)',
        HIGHEST,
        AsGood(0.03),
      ),
      arm('fira', 'clip() | fira(b2=0.99, rank=16, gap=50)', HIGHEST, AsGood(0.01)),
      arm('apollo', 'clip() | apollo(b2=0.99, rank=16, gap=50)', HIGHEST, AsGood(0.01)),
      arm('stable_spam', 'stable_spam() | decay(rate=0.1)', USUAL, Better()),
      arm('soap', 'clip() | soap() | decay(rate=0.1)', HIGH, Faster(1.67)),
      arm(
        'schedule_free',
        'clip() | schedule_free(inner=rmsprop(b2=0.99) | decay(rate=0.1), warmup=40)',
        USUAL,
        AsGood(0.01),
      ),
    ),
    changes=CPU,
    scales={'cpu': Scale(budgets=(400, 800), baseline_budgets=(200, 1600), hours=4)},
  )
