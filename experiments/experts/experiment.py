"""One expert of four or eight in the middle layer against the same layer dense, at equal FLOPs.

  python -m lmjax.experiment run experiments/experts --scale=cpu

The paper compares at equal compute, with one BASE layer in the middle of the network: a token meets
matrices of the same sizes in every arm, and besides them 64 x E numbers of its router. Parameters
grow with E. Claim: better than dense at equal compute (arXiv:2103.16716, section 4), there by more
the more compute there is; no number is given for a model of this size.
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
  'model.embed': 'untied()',
  'eval.every': 0,
  'checkpoint_every': 400,
  'sample.every': 0,
  'sample.tokens': 0,
  'tensorboard': False,
  'report': False,
}
RATES = {'peak_lr': (3e-3, 1e-2, 3e-2)}


def get_experiment():
  def arm(name, ffn, claim=None):
    changes = {'model.blocks.middle.ffn': ffn, 'model.stack': 'block + middle + block'}
    return Arm(name, changes, RATES, claim)

  return Experiment(
    title='Experts in the middle layer',
    source='Claim: arXiv:2103.16716, see `lmjax/models/ffn/base_layers.py`.',
    base='quickstart',
    fields=('model.blocks.middle.ffn', 'peak_lr'),
    baseline=arm('dense', 'gelu()'),
    treatments=(
      arm('base_4', 'base_layers(experts=4)', Better()),
      arm('base_8', 'base_layers(experts=8)', Better()),
    ),
    changes=CPU,
    scales={'cpu': Scale(budgets=(400,), baseline_budgets=(200, 800), hours=0.5)},
  )
