"""How much of which text: stratified sampling, Aioli, Skill-It, and what DoReMi and DoGE learnt.

  export LMJAX_DATA=DATA LMJAX_MIXTURES=DIR
  python experiments/mixtures/prepare.py                          runs that others depend on
  python -m lmjax.experiment run experiments/mixtures --scale=cpu

Prose, code and markup: speeches, Fortran and LaTeX of DATA/lm/domains, byte by byte. Compared is
the mean over the three of the held-out loss. LearnParams of Aioli is within its steps. The other
three take further runs, which `prepare.py` makes; the baseline at twice the steps says what such
steps are worth without a mixture. Every arm is tuned over the same rates.
"""

import math

from lmjax.experiment import Arm
from lmjax.experiment import Better
from lmjax.experiment import Experiment
from lmjax.experiment import Scale

DOMAINS = ('speeches_sotu', 'code_fortran', 'math_tex')
ROWS = 24  # held-out rows of each source in a look


def source(split: str) -> str:
  return ' + '.join(f'jsonl(path="$LMJAX_DATA/lm/domains/{d}.{split}.jsonl.xz")' for d in DOMAINS)


CPU = {
  'data.train': source('train'),
  'data.valid': source('valid'),
  'data.cache': 'runs/tokens',
  'model.width': 64,
  'model.depth': 3,
  'model.unroll': 3,
  'model.mixer.head_dim': 32,
  'batch_tokens': 4096,
  'optim': 'clip() | adam(b2=0.95) | decay(rate=0.1)',
  'schedule': 'cosine(warmup=0.25, end=0.1)',
  'eval.every': 0,
  'checkpoint_every': 300,
  'sample.every': 0,
  'sample.tokens': 0,
  'tensorboard': False,
  'report': False,
}
RATES = {'peak_lr': (3e-3, 1e-2)}
EVEN = 'temperature(alpha=0.0)'


def mean_over_sources(lines) -> float:
  """The mean of the sources' held-out losses at the end of the run, nats a byte."""
  evals = [x for x in lines if x['kind'] == 'eval']
  found = [v for k, v in evals[-1].items() if k.startswith('nll/')] if evals else []
  return sum(found) / len(found) if found else math.nan


def get_experiment():
  arm = lambda name, mixture, claim=None: Arm(name, {'data.mixture': mixture}, RATES, claim)
  learned = lambda name: f'learned(run="$LMJAX_MIXTURES/{name}")'
  aioli = 'aioli(eta=0.1, ema=0.5, one_hot_factor=0.5, update_steps=100, lp_rounds=2, lp_steps=4'
  skills = 'skill_it(graph="$LMJAX_MIXTURES/graph.json", update_steps=30'
  return Experiment(
    title='Mixtures of prose, code and markup',
    source='Claims: arXiv:2411.05735 (Aioli, 0.27 of perplexity on average over stratified '
    'sampling), arXiv:2305.10429 (DoReMi), arXiv:2310.15393 (DoGE), arXiv:2307.14430 (Skill-It).',
    base='quickstart',
    fields=('data.mixture', 'peak_lr'),
    baseline=arm('stratified', EVEN),
    treatments=(
      arm('aioli', f'{aioli}, rows={ROWS})', Better()),
      arm('skill_it', f'{skills}, rows={ROWS})', Better()),
      arm('doremi', learned('doremi'), Better()),
      arm('doge', learned('doge'), Better()),
    ),
    changes=CPU,
    scales={'cpu': Scale(budgets=(300,), baseline_budgets=(600,), hours=1)},
    measure=mean_over_sources,
    notes='At 0.018 and 0.03, tried before, Aioli and the baseline are unstable: seeds differ '
    'by 0.2 and more. Beside their 300 steps, skill_it takes 135 (three runs of 45), doremi 600 (a '
    'reference, and a proxy with a forward pass more) and doge 300 (of about twice the work). The '
    'baseline at 600 steps has as many as doge, more than skill_it and fewer than doremi.',
  )
