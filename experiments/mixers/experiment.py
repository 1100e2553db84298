"""Attention, DeltaNet, and stacks of both, on the bundled text at 256 bytes.

  python -m lmjax.experiment run experiments/mixers --scale=cpu

Four layers of one width; heads of 32 everywhere, so that the numbers of parameters differ by the
convolutions and write strengths alone. Without positions but in attention, as in the paper. Its
claims at 1.3B and 100B tokens, perplexity of WikiText: DeltaNet 16.87, Transformer 16.85, hybrids
about 16.55, in nats 0.001 above and 0.018 below. A claim of "as good" is taken as within 0.03 here.
"""

from lmjax.experiment import Arm
from lmjax.experiment import AsGood
from lmjax.experiment import Better
from lmjax.experiment import Experiment
from lmjax.experiment import Scale

CPU = {
  'model.width': 64,
  'model.stack': 'block*4',
  'model.unroll': 4,
  'model.position': 'none()',
  'data.length': 256,
  'batch_tokens': 2048,
  'optim': 'clip() | adam(b2=0.95) | decay(rate=0.1)',
  'schedule': 'cosine(warmup=0.25, end=0.1)',
  'eval.every': 0,
  'checkpoint_every': 400,
  'sample.every': 0,
  'sample.tokens': 0,
  'tensorboard': False,
  'report': False,
}
RATES = {'peak_lr': (3e-3, 1e-2, 3e-2, 1e-1)}
DELTA = 'deltanet(head_dim=32)'
MIXER, OTHER = 'model.blocks.block.mixer', 'model.blocks.other.mixer'


def attention(window: str = '') -> str:
  return f'gqa(head_dim=32, position=rope(){window and ", window=" + window})'


def get_experiment():
  def arm(name, mixer, claim=None, stack='block*4', other=None):
    changes = {MIXER: mixer, 'model.stack': stack}
    return Arm(name, changes | ({OTHER: other} if other else {}), RATES, claim)

  hybrid = dict(stack='(block, other)*2')
  return Experiment(
    title='DeltaNet, attention and stacks of both',
    source='Claims: arXiv:2406.06484, see `lmjax/models/mixers/deltanet.py`.',
    base='quickstart',
    fields=('peak_lr', MIXER, 'model.blocks.other.*', 'model.stack'),
    baseline=arm('attention', attention()),
    treatments=(
      arm('deltanet', DELTA, AsGood(0.03)),
      arm('delta_window', DELTA, Better(), **hybrid, other=attention('64')),
      arm('delta_attention', DELTA, Better(), **hybrid, other=attention()),
    ),
    changes=CPU,
    scales={'cpu': Scale(budgets=(400,), hours=1)},
    notes='Every other layer of the hybrids is attention over 64 bytes, or over all. The paper '
    'has two layers of full attention among 24; half of them is what a stack of four allows.',
  )
