"""A tiny run that has everything a resume could lose: accumulation, packing, a mixture of three
sources, dropout.
"""

import json
import pathlib
import random

import numpy as np

from lmjax import files as files_lib
from lmjax import main as main_lib
from lmjax.checkpoint import Checkpointer
from lmjax.tracking import read_metrics

SETTINGS = {
  'model.width': 16,
  'model.depth': 2,
  'model.mixer.head_dim': 8,
  'model.residual': 'pre(dropout=0.1)',
  'model.dropout': 0.1,
  'data.length': 16,
  'batch_tokens': 128,
  'micro_batches': 2,
  'data.pack': 'best_fit()',
  'data.valid': '',
  'steps': 24,
  'checkpoint_every': 4,
  'keep_last': 3,
  'log_every': 1,
  'eval.every': 0,
  'sample.tokens': 0,
  'tensorboard': 'false',
  'report': 'false',
}
TIMES = ('time', 'step_time', 'tokens_per_second', 'data_wait', 'blocked', 'seconds')


def texts(folder: pathlib.Path, poison: str = '') -> str:
  """Writes three texts and gives the mixture of them; `poison` is put into the middle of one."""
  words = 'the cat sat on a mat and saw many other cats that had come from far away'.split()
  rng, files = random.Random(0), []
  for i in range(3):
    docs = [' '.join(rng.choices(words, k=rng.randint(2, 9))) for _ in range(60)]
    if poison and i == 1:
      docs[30] = poison
    files.append(folder / f'{i}.jsonl')
    files[-1].write_text('\n'.join(json.dumps({'text': d}) for d in docs))
  a, b, c = files
  return f'0.5*jsonl(path="{a}") + 0.3*jsonl(path="{b}") + 0.2*jsonl(path="{c}")'


def words(workdir, train: str, **settings) -> list[str]:
  """Arguments of the command; settings replace or join SETTINGS (`__` stands for a dot)."""
  all_of = SETTINGS | {'data.train': train} | {k.replace('__', '.'): v for k, v in settings.items()}
  options = [f'--config.{k}={v}' for k, v in all_of.items()]
  return ['--config=quickstart', f'--workdir={workdir}', *options]


def run(workdir, train: str, *flags: str, **settings) -> int:
  return main_lib.main([*words(workdir, train, **settings), *flags])


def lines(workdir, kind: str | None = 'train') -> list[dict]:
  """Metrics that count, without what differs from run to run."""
  found = [m for m in read_metrics(workdir) if kind is None or m['kind'] == kind]
  return [{k: v for k, v in m.items() if k not in TIMES} for m in found]


def arrays(workdir, step: int) -> dict[str, np.ndarray]:
  """Every array of a checkpoint by name."""
  out: dict[str, np.ndarray] = {}

  def walk(node, name):
    if isinstance(node, dict):
      for k, v in node.items():
        walk(v, f'{name}/{k}')
    else:
      out[name] = node

  walk(Checkpointer(files_lib.path_of(workdir) / 'checkpoints').restore_params(step), '')
  return out


def same_arrays(a: dict, b: dict) -> list[str]:
  """Names of the arrays that differ in any bit."""
  assert a.keys() == b.keys() and a
  return [k for k in a if a[k].dtype != b[k].dtype or a[k].tobytes() != b[k].tobytes()]
