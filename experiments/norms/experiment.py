"""Rms norm and power norm against layer norm, on the bundled text.

  python -m lmjax.experiment run experiments/norms --scale=cpu

One small GPT, byte by byte; all norms of a model are of one kind. Power norm warms up as long as
the learning rate does, as its authors' runs did (100 of 400 steps), and has a group for each head
(2). `power_bare` is without that scaling, itself a norm of each token: what is left is the running
statistic alone. Compared are held-out losses, with running statistics: training losses of models
with batch statistics have seen the future.
"""

from lmjax.experiment import Arm
from lmjax.experiment import AsGood
from lmjax.experiment import Better
from lmjax.experiment import Experiment
from lmjax.experiment import Scale

CPU = {
  'model.width': 64,
  'model.depth': 3,
  'model.unroll': 3,
  'model.mixer.head_dim': 32,
  'optim': 'clip() | adam(b2=0.95) | decay(rate=0.1)',
  'schedule': 'cosine(warmup=0.25, end=0.1)',
  'eval.every': 0,
  'checkpoint_every': 400,
  'sample.every': 0,
  'sample.tokens': 0,
  'tensorboard': False,
  'report': False,
}
RATES = {'peak_lr': (3e-3, 1e-2, 3e-2)}
# 20.9 -> 17.9 on WikiText-103 and 53.2 -> 47.6 on PTB, in nats 0.15 and 0.11.
CLAIM = 0.11


def get_experiment():
  def arm(name, norm, claim=None):
    return Arm(name, {'model.norm': norm, 'model.final_norm': norm}, RATES, claim)

  return Experiment(
    title='Norms over the batch and over the token',
    source='Claims: arXiv:2003.07845 (of perplexities, against layer norm), arXiv:1910.07467.',
    base='quickstart',
    fields=('model.blocks.*.norm', 'model.final_norm', 'peak_lr'),
    baseline=arm('layer_norm', 'layer_norm()'),
    treatments=(
      arm('rms_norm', 'rms_norm()', AsGood(0.01)),
      arm('power_norm', 'power_norm(warmup=100, groups=2)', Better(CLAIM)),
      arm('power_batch', 'power_norm(warmup=100, groups=2, variant="batch")'),
      arm('power_bare', 'power_norm(warmup=100, groups=0)'),
    ),
    changes=CPU,
    scales={'cpu': Scale(budgets=(400,), hours=1)},
    notes='PN-V (power_batch) lost to layer norm in the paper, which is no claim for it.',
  )
