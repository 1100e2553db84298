"""AdamW, Sophia-G, Muon and SCALE on eleven labelled domains, where an accelerator is at hand.

  LMJAX_DATA=DATA python -m lmjax.experiment run experiments/optimizers_mixture --scale=gpu

DATA/lm/domains holds `<domain>.train.jsonl.xz` and `.valid.jsonl.xz` of eleven domains, about 28M
tokens of GPT-2's tokenizer, and DATA/tokenizers/gpt2 the tokenizer; weights are the domains' sizes.
The longest budget sees the data twice. `--scale=smoke` tries the whole on a CPU within minutes.
"""

from lmjax.experiment import Arm
from lmjax.experiment import AsGood
from lmjax.experiment import Experiment
from lmjax.experiment import Faster
from lmjax.experiment import Scale

# Bytes of text, in tenths of MB.
DOMAINS = dict(
  books=320,
  math_tex=148,
  code_python=152,
  code_c_cpp=128,
  code_fortran=73,
  techdocs=68,
  speeches_sotu=98,
  legal_licences=47,
  web_c4=22,
  web_genres=12,
  masc_tokenised=31,
)


def source(split: str) -> str:
  """All domains that have the split, by size."""
  part = lambda name: 'all' if name == 'masc_tokenised' else split
  names = [n for n in DOMAINS if split == 'train' or n != 'masc_tokenised']
  total = sum(DOMAINS[n] for n in names)
  return ' + '.join(
    f'{DOMAINS[n] / total:.6f}*jsonl(path="$LMJAX_DATA/lm/domains/{n}.{part(n)}.jsonl.xz")'
    for n in names
  )


def files(split: str) -> str:
  names = [n for n in DOMAINS if n != 'masc_tokenised']
  paths = ', '.join(f'"$LMJAX_DATA/lm/domains/{n}.{split}.jsonl.xz"' for n in names)
  return f'jsonl(path=({paths}))'


MODEL = {
  'data.tokenizer': 'bpe(path="$LMJAX_DATA/tokenizers/gpt2")',
  'data.train': source('train'),
  'data.valid': files('valid'),
  'model.embed': 'untied()',
  'peak_lr': 1e-3,
  'eval.every': 0,
  'eval.batches': 64,
  'checkpoint_every': 500,
  'sample.every': 0,
  'sample.tokens': 0,
  'tensorboard': False,
  'report': False,
}
GPU = {  # 16M parameters in the layers and 64M in the tables: 28M and 56M tokens
  'model.width': 384,
  'model.depth': 9,
  'model.mixer.head_dim': 64,
  'model.dtype': 'bfloat16',
  'data.length': 512,
  'batch_tokens': 65536,
}
POD = {**GPU, 'mesh.data': -1}  # one slice a trial, its chips share the batch
SMOKE = {
  'model.width': 32,
  'model.depth': 1,
  'model.mixer.head_dim': 16,
  'data.length': 64,
  'batch_tokens': 512,
  'eval.batches': 2,
}


def get_experiment():
  rates = lambda *values: {'peak_lr': values}
  arm = lambda name, optim, grid, claim=None: Arm(name, {'optim': optim}, grid, claim)
  usual = rates(1e-3, 3e-3, 1e-2)
  return Experiment(
    title='AdamW, Sophia-G, Muon and SCALE on eleven domains',
    source='Claims: the papers named in `lmjax/optim/<method>.py`.',
    base='quickstart',
    fields=('optim', 'peak_lr'),
    baseline=arm('adamw', 'clip() | adam() | decay(rate=0.1)', usual),
    treatments=(
      arm('sophia_g', 'clip() | sophia_g() | decay(rate=0.2)', usual, Faster(2)),
      arm(
        'muon',
        'clip() | split(matrix=muon(), rest=adam()) | decay(rate=0.1)',
        usual,
        Faster(1.35),
      ),
      arm('scale', 'scale()', usual, AsGood(0.01)),
    ),
    changes=MODEL,
    scales={
      'gpu': Scale(budgets=(427, 854), changes=GPU, hours=2, gpus=1),
      'pod': Scale(budgets=(427, 854), changes=POD, hours=8, gpus=16),
      'smoke': Scale(budgets=(4, 8), changes=SMOKE, hours=1),
    },
  )
