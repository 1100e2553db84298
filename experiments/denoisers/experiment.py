"""What a mixture of denoisers teaches: each objective alone and UL2, then plain next-token
prediction.

  python -m lmjax.experiment run experiments/denoisers --scale=cpu

One decoder, byte by byte, on the bundled text; tasks in UL2's `causal` form, so that all arms are
one architecture. 400 steps of each, then 100 of next-token prediction with a fresh optimizer, whose
held-out loss is compared. UL2's claim is to be the best objective on the average of tasks and as
good as the specialist on each (arXiv:2205.05131); on this one task, whose specialist is `clm`, it
must be no worse than 0.03 nats, with the same tokens and a third of them predicted. `spans` is the
regular denoiser (T5's), `prefix` the sequential one; neither has a claim.
"""

from lmjax.experiment import Arm
from lmjax.experiment import AsGood
from lmjax.experiment import Experiment
from lmjax.experiment import Scale

STEPS = 400
CPU = {
  'model.width': 64,
  'model.depth': 3,
  'model.unroll': 3,
  'model.mixer.head_dim': 32,
  'data.tokenizer': 'extended(extra=40)',
  'data.mask_documents': False,
  'optim': 'clip() | adam(b2=0.95) | decay(rate=0.1)',
  'schedule': 'cosine(warmup=0.25, end=0.1)',
  'eval.every': 0,
  'checkpoint_every': 400,
  'sample.every': 0,
  'sample.tokens': 0,
  'tensorboard': False,
  'report': False,
}
RATES = {'peak_lr': (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)}
ALONE = {'spans': (1, 1, 0, 0, 0, 0, 0), 'prefix': (0, 0, 1, 0, 0, 0, 0)}


def get_experiment():
  def arm(name, transforms, claim=None):
    before = {'data.transforms': transforms, 'peak_lr': 1e-2, 'steps': STEPS}
    return Arm(name, {}, RATES, claim, before=(before,))

  alone = [
    arm(name, f'ul2(form="causal", weights={tuple(map(float, w))})') for name, w in ALONE.items()
  ]
  return Experiment(
    title='Denoisers before next-token prediction',
    source='Claim: arXiv:2205.05131, see `lmjax/data/transforms/ul2.py`.',
    base='quickstart',
    fields=('data.transforms', 'peak_lr'),
    baseline=arm('clm', ''),
    treatments=(arm('ul2', 'ul2(form="causal")', AsGood(0.03)), *alone),
    changes=CPU,
    scales={'cpu': Scale(budgets=(100,), hours=1)},
    notes='The rate of the first 400 steps is 0.01 for all; that of the last 100 is tuned.',
  )
