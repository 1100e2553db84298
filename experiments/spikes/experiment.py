"""Gradient spikes on purpose: which clipping lets Adam forget them soonest?

  python -m lmjax.experiment run experiments/spikes --scale=cpu

Every hundredth gradient from the 150th on is a hundred times as long and points uphill. Compared is
what a spike costs: the training loss of the 40 steps behind it beyond the 40 steps before.
"""

from lmjax.experiment import Arm
from lmjax.experiment import Better
from lmjax.experiment import Experiment
from lmjax.experiment import measures
from lmjax.experiment import Scale

CPU = {
  'model.width': 64,
  'model.depth': 3,
  'model.unroll': 3,
  'model.mixer.head_dim': 32,
  'log_every': 1,
  'eval.every': 0,
  'checkpoint_every': 200,
  'sample.every': 0,
  'sample.tokens': 0,
  'tensorboard': False,
  'report': False,
}
SPIKES = range(150, 600, 100)
RATES = {'peak_lr': (1e-3, 3e-3, 1e-2, 3e-2)}
ADAM = 'adam(b2=0.99)'


def get_experiment():
  def arm(name, optim, claim=None):
    spike = f'disturb(start={SPIKES.start}, every={SPIKES.step})'
    return Arm(name, {'optim': f'{spike} | {optim} | decay(rate=0.1)'}, RATES, claim)

  return Experiment(
    title='Gradient spikes on purpose',
    source='AdaGC, StableAdamW, Stable-SPAM: papers in `lmjax/optim/<method>.py`.',
    base='quickstart',
    fields=('optim', 'peak_lr'),
    baseline=arm('global', f'clip() | {ADAM}'),
    treatments=(
      arm('none', ADAM),
      arm('per_tensor', f'clip_tensor(norm=0.1) | {ADAM}'),
      arm('adagc', f'adagc() | {ADAM}', Better()),
      arm('stable_adamw', 'stable_adamw()', Better()),
      arm('stable_spam', 'stable_spam()', Better()),
    ),
    changes=CPU,
    scales={'cpu': Scale(budgets=(600,), hours=1)},
    measure=measures.excess_loss(SPIKES, over=40),
    notes='The compared number is the cost of a spike in nats a token, not the final loss.',
  )
