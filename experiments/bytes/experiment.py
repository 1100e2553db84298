"""Bytes: a flat model against MEGABYTE of 4 and 8 bytes a patch, at equal FLOPs a byte.

  python -m lmjax.experiment run experiments/bytes --scale=cpu
  python experiments/bytes/by_position.py RUN_DIRECTORY     afterwards: the loss by place in a patch

Forward FLOPs of matrices and allowed pairs of attention at 512 bytes, as `lmjax/flops.py` counts
them, the global model at one place in P: flat 1.116 M, P = 4 1.104 M, P = 8 1.104 M a byte, so that
neither MEGABYTE has more than the baseline. They have 4 and 6 times its parameters, which is the
method's point. Compared is what the paper compares, bits a byte, of held-out text.
"""

import math

from lmjax.experiment import Arm
from lmjax.experiment import Better
from lmjax.experiment import Experiment
from lmjax.experiment import Scale

CPU = {
  'model.mixer.head_dim': 32,
  'model.unroll': 3,
  'data.length': 512,
  'batch_tokens': 4096,
  'optim': 'clip() | adam(b2=0.95) | decay(rate=0.1)',
  'schedule': 'cosine(warmup=0.25, end=0.1)',
  'eval.every': 0,
  'checkpoint_every': 250,
  'sample.every': 0,
  'sample.tokens': 0,
  'tensorboard': False,
  'report': False,
}
NARROW, WIDE = ({'peak_lr': rates} for rates in ((3e-3, 1e-2, 3e-2), (1e-3, 3e-3, 1e-2)))


def bits_per_byte(lines) -> float:
  """Of the validation text, at the end of the run."""
  evals = [x for x in lines if x['kind'] == 'eval']
  return float(evals[-1]['bits_per_byte']) if evals else math.nan


def megabyte(patch: int, layers: int, local_layers: int) -> dict:
  local = f'local_width=96, local_stack="block*{local_layers}"'
  return {
    'model.architecture': f'megabyte(patch={patch}, {local})',
    'model.width': 256,
    'model.depth': layers,
  }


def get_experiment():
  arm = lambda name, changes: Arm(name, changes, WIDE, Better())
  flat = {'model.architecture': 'transformer()', 'model.width': 128, 'model.depth': 2}
  return Experiment(
    title='Bytes in patches at equal FLOPs',
    source='Claims: arXiv:2305.07185, see `lmjax/models/architectures/megabyte.py`.',
    base='quickstart',
    fields=('peak_lr', 'model.architecture', 'model.width', 'model.depth'),
    baseline=Arm('flat', flat, NARROW),
    treatments=(
      arm('patch_4', megabyte(4, layers=2, local_layers=1)),
      arm('patch_8', megabyte(8, layers=3, local_layers=2)),
    ),
    changes=CPU,
    scales={'cpu': Scale(budgets=(250,), hours=1)},
    measure=bits_per_byte,
    notes='The compared number is bits a byte. The paper has 1.00 against 1.06 on books, from '
    'models about a thousand times as large.',
  )
