"""Headless pre-training of a decoder, then a head: against the same steps with one from the start.

  export LMJAX_DATA=DATA
  python -m lmjax.experiment run experiments/headless --scale=cpu

Stories in the 32,000 pieces of Llama 2's tokenizer. All arms take 200 steps and then 100 of plain
next-token prediction with a fresh optimizer; the headless ones get an output matrix, a copy of the
embedding, between the two. The authors find better LAMBADA accuracy for decoders at the same
compute (arXiv:2309.08351); compared here is the held-out loss at equal steps, which must be no
worse than 0.03 nats. `clm_head` gets a second matrix in the same way behind 200 steps of next-token
prediction: what the matrix alone brings shows there. What a headless step saves is measured by
`experiments/perf/headless.py`.
"""

from lmjax.experiment import Arm
from lmjax.experiment import AsGood
from lmjax.experiment import Experiment
from lmjax.experiment import Scale

STEPS = 200
STORIES = 'text(path="$LMJAX_DATA/lm/tinystories/{}.txt.xz", separator="<|endoftext|>")'
CPU = {
  'data.train': STORIES.format('train'),
  'data.valid': STORIES.format('valid'),
  'data.tokenizer': 'sentencepiece(path="$LMJAX_DATA/tokenizers/llama2_32k/tokenizer.bin.xz")',
  'data.cache': 'runs/tokens',
  'model.width': 64,
  'model.depth': 3,
  'model.unroll': 3,
  'model.mixer.head_dim': 32,
  'batch_tokens': 1024,
  'optim': 'clip() | adam(b2=0.95) | decay(rate=0.1)',
  'schedule': 'cosine(warmup=0.25, end=0.1)',
  'eval.every': 0,
  'eval.batches': 8,
  'checkpoint_every': 400,
  'sample.every': 0,
  'sample.tokens': 0,
  'tensorboard': False,
  'report': False,
}
RATES = {'peak_lr': (1e-3, 3e-3, 1e-2, 3e-2)}


def get_experiment():
  before = lambda objective, lr: ({'objective': objective, 'peak_lr': lr, 'steps': STEPS},)
  add_head = {'init_from': 'add_head(run="{before}")'}
  untied = {'model.embed': 'untied()'}
  return Experiment(
    title='A head from the start, or at the end',
    source='Claim: arXiv:2309.08351, see `lmjax/objectives/headless_cwt.py`.',
    base='quickstart',
    fields=('objective', 'peak_lr', 'init_from', 'model.embed'),
    baseline=Arm('clm', {'model.embed': 'tied()'}, RATES, before=before('clm()', 3e-3)),
    treatments=(
      Arm(
        'headless', untied | add_head, RATES, AsGood(0.03), before=before('headless_cwt()', 3e-3)
      ),
      Arm('headless_high', untied | add_head, RATES, before=before('headless_cwt()', 1e-2)),
      Arm('clm_head', untied | add_head, RATES, before=before('clm()', 3e-3)),
    ),
    changes=CPU | {'model.embed': 'tied()'},
    scales={'cpu': Scale(budgets=(100,), hours=1)},
    notes='Rates before: 0.003 for next-token prediction, by hand the best of 0.001, 0.003 and '
    '0.01 (held-out loss 5.83, 4.83 and 5.68 after them); 0.003 for headless and 0.01 for '
    'headless_high, which are not tuned.',
  )
