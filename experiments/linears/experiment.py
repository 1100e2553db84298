"""Fewer parameters a matrix, from the first step: what does it cost in loss?

  python -m lmjax.experiment run experiments/linears --scale=cpu

The small GPT of `experiments/optimizers`, tied, with Adam and no decay for every arm, each tuned
over the same rates. All arms take the same steps; parameters, state and FLOPs differ by arm.

  low_rank     rank a quarter of the width, no claim: what the others must beat (its authors find it
               far behind full matrices)
  sltrain      the same rank and 3% of the entries; alpha / rank as in its paper. Its authors: 34.15
               against 34.06 perplexity (60M) to 19.42 against 18.80 (350M), so no worse than 0.03
               nats. Beyond that: between low_rank and dense
  structured   feed-forward with 31% of its parameters, low_rank; no claim: what guiding must beat
  guided       the same, guided in all passes of half of the steps: on average half of a full
               feed-forward's matrices more, 2.6 times those of `structured` in all. Its authors:
               +0.4 perplexity at 1.3B, so no worse than 0.03 nats. Beyond that: better than
               structured
  fp8          products in 8-bit floats, parameters as in `dense`. Its source: losses of 16 bits are
               matched, so no worse than 0.03 nats
  spdf_50, 75  half and three quarters of the entries pruned. Its authors claim no loss behind dense
               fine-tuning, nothing of the pre-training loss that is compared here: no claim
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
  'optim': 'clip() | adam(b2=0.95)',
  'schedule': 'cosine(warmup=0.25, end=0.1)',
  'eval.every': 0,
  'checkpoint_every': 200,
  'sample.every': 0,
  'sample.tokens': 0,
  'tensorboard': False,
  'report': False,
}
RATES = {'peak_lr': (3e-3, 1e-2, 3e-2, 1e-1)}
GUIDED = f'structured_ffn(rank=16, guided=0.5, steps={STEPS})'


def get_experiment():
  arm = lambda name, linear, claim=None: Arm(name, {'model.linear': linear}, RATES, claim)
  return Experiment(
    title='Parameterizations of matrices',
    source='Claims: the papers named in `lmjax/models/linears/<method>.py`.',
    base='quickstart',
    fields=('model.linear', 'peak_lr'),
    baseline=arm('dense', 'dense()'),
    treatments=(
      arm('low_rank', 'low_rank(rank=16)'),
      arm('sltrain', 'sltrain(rank=16, delta=0.03, alpha=4.0)', AsGood(0.03)),
      arm('structured', 'structured_ffn(rank=16)'),
      arm('guided', GUIDED, AsGood(0.03)),
      arm('fp8', 'fp8()', AsGood(0.03)),
      arm('spdf_50', 'spdf(sparsity=0.5)'),
      arm('spdf_75', 'spdf(sparsity=0.75)'),
    ),
    changes=CPU,
    scales={'cpu': Scale(budgets=(STEPS,), hours=1)},
    notes='Equal steps, not equal FLOPs: `guided` multiplies with a full matrix in half of them.',
  )
