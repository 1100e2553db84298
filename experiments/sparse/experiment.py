"""Half or a quarter of the entries in pre-training, all of them in fine-tuning.

  export LMJAX_DATA=DATA
  python -m lmjax.experiment run experiments/sparse --scale=cpu

400 steps on the bundled plays, then 100 on speeches, another domain, with a fresh optimizer; the
held-out loss on speeches is compared. The authors claim no significant loss behind dense
fine-tuning at 50 % and, for 1.3B, at 75 % (arXiv:2303.10464): no worse than 0.03 nats here.
`sparse_75` keeps its mask in fine-tuning, their ablation, without a claim.
"""

from lmjax.experiment import Arm
from lmjax.experiment import AsGood
from lmjax.experiment import Experiment
from lmjax.experiment import Scale

SPEECHES = 'jsonl(path="$LMJAX_DATA/lm/domains/speeches_sotu.{}.jsonl.xz")'
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
RATES = {'peak_lr': (3e-3, 1e-2, 3e-2, 1e-1)}


def get_experiment():
  def arm(name, before, linear, claim=None):
    first = {'model.linear': before, 'peak_lr': 1e-2, 'steps': 400}
    second = {
      'model.linear': linear,
      'data.train': SPEECHES.format('train'),
      'data.valid': SPEECHES.format('valid'),
      'data.cache': 'runs/tokens',
    }
    return Arm(name, second, RATES, claim, before=(first,))

  spdf = lambda sparsity, dense: f'spdf(sparsity={sparsity}, dense={dense})'
  dense = lambda name, s, claim: arm(name, spdf(s, False), spdf(s, True), claim)
  return Experiment(
    title='Sparse pre-training, dense fine-tuning',
    source='Claims: arXiv:2303.10464, see `lmjax/models/linears/spdf.py`.',
    base='quickstart',
    fields=('model.linear', 'peak_lr'),
    baseline=arm('dense', 'dense()', 'dense()'),
    treatments=(
      dense('spdf_50', 0.5, AsGood(0.03)),
      dense('spdf_75', 0.75, AsGood(0.03)),
      arm('sparse_75', spdf(0.75, False), spdf(0.75, False)),
    ),
    changes=CPU,
    scales={'cpu': Scale(budgets=(100,), hours=1)},
    notes='The rate of the first 400 steps is 0.01 for all; that of fine-tuning is tuned.',
  )
