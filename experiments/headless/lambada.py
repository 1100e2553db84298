"""LAMBADA of the runs of this experiment, before and after their last steps: writes lambada.md.

  export LMJAX_DATA=DATA
  python experiments/headless/lambada.py --runs=runs/experiments

Before: the output matrix is the copied embedding, which was trained for no such use; a headless
model has no other. After: the steps of next-token prediction. The point of each arm is that of
results.json with the lowest loss. Models of 300 steps guess no last word; perplexities of the word
are what can be compared.
"""

import argparse
import pathlib
import statistics

import jax

from lmjax import build
from lmjax import config
from lmjax import registry
from lmjax import restore
from lmjax import run as run_lib
from lmjax.experiment import checks
from lmjax.experiment import execute
from lmjax.experiment import results
from lmjax.experiment import summary
from lmjax.experiment import tables

HERE = pathlib.Path(__file__).resolve().parent


def scores(run: build.Run, params, vars, limit: int) -> dict[str, float]:
  """{'accuracy': ..., 'perplexity': ...}."""
  model = run_lib.language_model(run, params, vars)
  found = registry.make('eval', f'lambada(limit={limit})')().run(model)
  return {key: s.value for s in found for key in ('accuracy', 'perplexity') if key in s.name}


def first(folder: pathlib.Path) -> tuple[build.Run, dict, dict]:
  """A run as it began."""
  run = build.build(config.resolve(restore.config_of(str(folder))))
  state = restore.begin(run, run.init(jax.random.key(0)))
  return run, state.params, state.vars


def main() -> None:
  p = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  p.add_argument('--runs', required=True, type=pathlib.Path, help='where `run` made directories')
  p.add_argument('--scale', default='cpu')
  p.add_argument('--limit', type=int, default=200, help='passages')
  flags = p.parse_args()
  e = checks.load(HERE)
  known = results.known(results.read(HERE), flags.scale, e.measured)
  found: dict[str, list] = {}
  for t in summary.everything(e, flags.scale, known):
    if t.seed in e.seeds:
      folder = execute.folder(flags.runs, t) / 'run'
      run, params, vars, _ = restore.load(folder)
      both = scores(*first(folder), flags.limit), scores(run, params, vars, flags.limit)
      found.setdefault(t.arm, []).append(both)
      print(t.name, *both, flush=True)
  names = 'arm', 'accuracy before', 'after', 'perplexity of the word before', 'after'
  lines = [tables.row(*names), tables.row(*['---'] * len(names))]
  for arm, pairs in found.items():
    middle = lambda i, key, pairs=pairs: statistics.median(pair[i][key] for pair in pairs)
    accuracies = [f'{middle(i, "accuracy"):.3f}' for i in (0, 1)]
    perplexities = [f'{middle(i, "perplexity"):.3g}' for i in (0, 1)]
    lines.append(tables.row(arm, *accuracies, *perplexities))
  head = f'LAMBADA (openai, first {flags.limit} passages), median over seeds {e.seeds}.'
  (HERE / 'lambada.md').write_text('\n'.join([head, '', *lines]) + '\n')


if __name__ == '__main__':
  main()
