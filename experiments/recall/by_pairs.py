"""Errors of finished runs of this experiment by the number of pairs in held-out documents.

command: python -m experiments.recall.by_pairs --allow_code runs/experiments/.../run ...

The catalogue's claim is about a number of pairs: DeltaNet answers more than 95 % there, linear
attention fewer than 60 %. The experiment compares at one number; this reads the newest checkpoints
and asks documents of fewer and more pairs than were trained on, in rows of one length. Nothing is
trained. --allow_code is for runs of `linear`, whose mixer lies beside this file.
"""

import argparse
import json
import pathlib
import sys

import jax

from lmjax import evaluate
from lmjax import registry
from lmjax import restore
from lmjax import specs
from lmjax.data import loader as loader_lib
from lmjax.data import plan as plan_lib
from lmjax.data import store as store_lib

ROWS = 16  # of a batch


def batches(run, pairs: int, tokens: int) -> list:
  """The run's held-out source with `pairs` pairs a document, in rows of `tokens` tokens."""
  valid = specs.call(run.config['data']['valid'])
  asked = specs.Call(valid.name, tuple((dict(valid.args) | dict(pairs=pairs)).items()))
  documents = registry.make('source', asked)()
  stored = store_lib.from_documents(documents, vocab_size=run.tokenizer.vocab_size)
  plan = plan_lib.sequential(stored, tokens, run.data_lookahead, rows_per_step=ROWS)
  loader = loader_lib.Loader(plan, transforms=[(t.name, t.fn) for t in run.transforms if t.task])
  return [{k: loader[i][k] for k in run.fields} for i in range(len(plan))]


def accuracies(folder: pathlib.Path, pairs: list[int], allow_code: bool) -> dict:
  """{pairs: share of right answers} under the newest checkpoint."""
  run, params, vars, step = restore.load(folder, allow_code=allow_code)
  score, out = evaluate.make_eval_step(run), {}
  for n in pairs:
    found = jax.device_put(batches(run, n, 4 * max(pairs)))
    out[n] = evaluate.held_out(score, params, vars, found, bytes_per_token=None)['accuracy']
  mixer = run.config['model']['blocks']['block']['mixer']
  return dict(mixer=mixer, seed=run.config['seed'], step=int(step), accuracy=out)


def main() -> int:
  p = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  p.add_argument('runs', nargs='+', type=pathlib.Path, help='run directories')
  p.add_argument('--pairs', default='2,4,8,16,32', help='each a divisor of the largest')
  p.add_argument(
    '--allow_code', action='store_true', help="import the modules that a run's config names"
  )
  p.add_argument('--out', type=pathlib.Path, help='a JSON file for the result')
  flags = p.parse_args()
  pairs = [int(n) for n in flags.pairs.split(',')]
  if min(pairs) < 1 or any(max(pairs) % n for n in pairs):
    p.error(f'--pairs={flags.pairs}: divisors of the largest are expected')
  report = dict(command=' '.join(sys.argv), runs={})
  for folder in flags.runs:
    found = report['runs'][str(folder)] = accuracies(folder, pairs, flags.allow_code)
    shares = '  '.join(f'{n}: {a:.1%}' for n, a in found['accuracy'].items())
    print(f'{found["mixer"]}, seed {found["seed"]}, step {found["step"]}: {shares}', flush=True)
  if flags.out:
    flags.out.write_text(json.dumps(report, indent=1) + '\n', encoding='utf-8')
  return 0


if __name__ == '__main__':
  sys.exit(main())
