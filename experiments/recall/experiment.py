"""Who remembers more: keys bound to values, each asked for once.

  python -m lmjax.experiment run experiments/recall --scale=cpu         in the repository's root
  python -m experiments.recall.by_pairs --allow_code RUN_DIRECTORY...   afterwards: by pairs

Two layers of width 64, each with one memory of 16 x 16. Documents of 2, 4 and 8 pairs are trained
on, the short ones to show soon what is asked; those of 8 are held out, and the share of wrong
answers is compared. There are twice as many keys as a memory has rows, so that keys cannot all be
orthogonal, and each pair is written a second time where it is asked for.

  linear       `deltanet` without its rule: the same parameters, writes are only added
  linear_elu   the same with the older map, elu + 1 over its sum, in place of silu and length 1
  deltanet     right in more than 95 % of the answers where `linear` is in fewer than 60 %: an error
               lower by 0.35 at least
  softmax      two heads of 32 that see all pairs

`linear_elu` and `softmax` have no claim: they say what the map is worth and whether the task is
learned. `by_pairs` tells the same of more pairs than were trained on, where memories fill up.
"""

import math

from lmjax.experiment import Arm
from lmjax.experiment import Better
from lmjax.experiment import Experiment
from lmjax.experiment import Scale

PAIRS, IDS = 8, 32  # pairs of a held-out document; keys, and values, to choose from


def mqar(pairs: int, documents: int, seed: int) -> str:
  return f'mqar(pairs={pairs}, documents={documents}, keys={IDS}, values={IDS}, seed={seed})'


CPU = {
  'model.width': 64,
  'model.depth': 2,
  'model.unroll': 2,
  'model.position': 'none()',
  'model.embed': 'untied()',
  'model.init': 'fan_in(embed=1.0)',
  'data.tokenizer': 'bytes(specials=False)',
  'data.train': ' + '.join(mqar(n, 8192, seed=0) for n in (2, 4, PAIRS)),
  'data.valid': mqar(PAIRS, 256, seed=1),
  'data.transforms': 'answers()',
  'data.pack': 'best_fit()',
  'data.length': 4 * PAIRS,
  'batch_tokens': 2048,
  'optim': 'clip() | adam(b2=0.95)',
  'schedule': 'cosine(warmup=0.25, end=0.1)',
  'eval.every': 0,
  'checkpoint_every': 0,
  'sample.every': 0,
  'sample.tokens': 0,
  'tensorboard': False,
  'report': False,
}
RATES = {'peak_lr': (5e-3, 1e-2, 2e-2)}
MIXER = 'model.blocks.block.mixer'
SIZES = 'head_dim=16, heads=1'
LINEAR = 'experiments.recall.linear_attention:LinearAttention'


def error_rate(lines) -> float:
  """The share of the answers of held-out documents that are wrong, at the end of the run."""
  evals = [x for x in lines if x['kind'] == 'eval']
  return 1 - float(evals[-1]['accuracy']) if evals else math.nan


def get_experiment():
  arm = lambda name, mixer, claim=None: Arm(name, {MIXER: mixer}, RATES, claim)
  return Experiment(
    title='Associative recall',
    source='Claim: arXiv:2406.06484, see `lmjax/models/mixers/deltanet.py`; task: '
    'arXiv:2312.04927, see `lmjax/data/sources/mqar.py`.',
    base='quickstart',
    fields=('peak_lr', MIXER),
    baseline=arm('linear', f'{LINEAR}({SIZES})'),
    treatments=(
      arm('deltanet', f'deltanet({SIZES})', Better(0.35)),
      arm('linear_elu', f'{LINEAR}({SIZES}, feature="elu", sums=True)'),
      arm('softmax', 'gqa(head_dim=32, position=rope())'),
    ),
    changes=CPU,
    scales={'cpu': Scale(budgets=(400,), hours=0.4)},
    measure=error_rate,
    notes='The compared number is the share of wrong answers, not the loss. The rates are tuned by '
    'the loss at the answers.',
  )
