"""Where the norm stands, on the bundled text: twelve narrow layers.

  python -m lmjax.experiment run experiments/placements --scale=cpu

Each placement is tuned over the same rates. The claims are those of the papers for models of 12
layers and more on web text: lower loss than Pre-LN for Mix-LN (arXiv:2412.13795), LayerNorm Scaling
(arXiv:2502.05795) and Peri-LN (arXiv:2502.02732); Pre-RMSNorm computes what Pre-LN does, at lower
cost (arXiv:2305.14858), which shows as the same loss. `post` has no claim: Mix-LN's authors find it
behind Pre-LN, and unstable.

Norms have gains and no biases, as those of the papers but for GPT-2's. LayerNorm Scaling comes with
initial values that do not shrink with depth, as its authors': both would do the same twice. Peri-LN
norms the embeddings too, as its paper's does.
"""

from lmjax.experiment import Arm
from lmjax.experiment import AsGood
from lmjax.experiment import Better
from lmjax.experiment import Experiment
from lmjax.experiment import Scale

CPU = {
  'model.width': 32,
  'model.depth': 12,
  'model.mixer.head_dim': 16,
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
LAYER_NORM, RMS_NORM = 'layer_norm(bias=False, eps=1e-5)', 'rms_norm(eps=1e-5)'


def get_experiment():
  def arm(name, residual, claim=None, norm=LAYER_NORM, init='fan_in()', embed_norm=''):
    norms = {'model.norm': norm, 'model.final_norm': norm, 'model.embed_norm': embed_norm}
    return Arm(name, {'model.residual': residual, 'model.init': init, **norms}, RATES, claim)

  return Experiment(
    title='Placements of the norm against Pre-LN',
    source='Claims: the papers named in `lmjax/models/residuals/<method>.py`.',
    base='quickstart',
    fields=(
      'model.blocks.block.residual',
      'model.blocks.block.norm',
      'model.final_norm',
      'model.embed_norm',
      'model.init',
      'peak_lr',
    ),
    baseline=arm('pre', 'pre()'),
    treatments=(
      arm('post', 'post()'),
      arm('mix_ln', 'mix_ln()', Better()),
      arm(
        'layernorm_scaling', 'layernorm_scaling()', Better(), init='fan_in(scale_residual=False)'
      ),
      arm('peri_ln', 'peri_ln()', Better(), embed_norm=LAYER_NORM),
      arm('pre_rmsnorm', 'pre_rmsnorm()', AsGood(0.01), norm=RMS_NORM),
    ),
    changes=CPU,
    scales={'cpu': Scale(budgets=(400,), hours=1.2)},
  )
