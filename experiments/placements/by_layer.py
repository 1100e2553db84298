"""What each layer does in the runs of this experiment: writes by_layer.json and by_layer.md.

  python experiments/placements/by_layer.py --runs=runs/experiments

The measures of the eval `by_layer` on held-out rows, for each arm at its best point, means over
seeds. Their authors' reasons for each placement, as criteria against `pre`, by Welch's 95 %
interval of the difference:

  mix_ln             gradients are flatter over the layers (standard deviation of the log of their
                     norms), and the deeper half is missed more (mean rise of the loss, log)
  layernorm_scaling  the variance behind the last layer is lower (log), and layers are missed more
                     evenly (standard deviation of the log of the rise)
  peri_ln            the variance behind the last layer is lower (log)

Arms have rates of their own, and the variance behind the first layer grows with the rate; what it
is multiplied by from there to the last (log) is a criterion of ours, added when this was seen.
Rises below a thousandth of a nat count as that, so that their logs exist.
"""

import argparse
import json
import math
import pathlib

import numpy as np

from lmjax import feed as feed_lib
from lmjax import restore
from lmjax.evals import by_layer
from lmjax.experiment import checks
from lmjax.experiment import execute
from lmjax.experiment import results
from lmjax.experiment import statistics
from lmjax.experiment import summary
from lmjax.experiment import tables

HERE = pathlib.Path(__file__).resolve().parent
LEAST = 1e-3
CRITERIA = (
  ('mix_ln', 'gradients are flatter', 'spread of gradients', 1),
  ('mix_ln', 'the deeper half is missed more', 'deeper half', -1),
  ('layernorm_scaling', 'the last variance is lower', 'last variance', 1),
  ('layernorm_scaling', 'layers are missed more evenly', 'spread of rises', 1),
  ('peri_ln', 'the last variance is lower', 'last variance', 1),
  ('layernorm_scaling', 'the variance grows less from layer 1 on', 'growth', 1),
)


def measured(folder: pathlib.Path, rows: int) -> dict[str, list[float]]:
  """{measure: values of layers 1 ... depth; variance also of what enters} of a finished run."""
  run, params, vars, _ = restore.load(folder)
  held_out = (np.asarray(batch['tokens']) for batch in feed_lib.Feed(run, folder).valid())
  tokens_RT = np.concatenate(list(held_out))[:rows]
  found = by_layer.Probe(run.architecture, {'params': params, **vars}).measure(tokens_RT)
  return {name: [v for _, (v, _) in sorted(own.items())] for name, own in found.items()}


def summed_up(found: dict[str, list[float]]) -> dict[str, float]:
  """What the criteria compare."""
  rises = [math.log(max(LEAST, r)) for r in found['removal']]
  return {
    'spread of gradients': float(np.std(np.log(found['gradient']))),
    'deeper half': float(np.mean(rises[len(rises) // 2 :])),
    'spread of rises': float(np.std(rises)),
    'last variance': math.log(found['variance'][-1]),
    'growth': math.log(found['variance'][-1] / found['variance'][1]),
  }


def page(found: dict[str, list[dict]], head: str) -> str:
  """by_layer.md."""
  text = ['# Layer by layer', '', head]
  for name in by_layer.MEASURES:
    columns = len(next(iter(found.values()))[0][name])
    layers = map(str, range(0 if name == 'variance' else 1, columns + (name != 'variance')))
    text += ['', f'## {name}', '', tables.row('arm', *layers), tables.row(*['---'] * (columns + 1))]
    for arm, runs in found.items():
      means = np.mean([r[name] for r in runs], axis=0)
      text.append(tables.row(arm, *(f'{v:.3g}' for v in means)))
  compared = {arm: [summed_up(r) for r in runs] for arm, runs in found.items()}
  names = 'arm', 'criterion', 'pre', 'arm', 'better by [95 %]', 'holds'
  text += ['', '## Criteria', '', tables.row(*names), tables.row(*['---'] * len(names))]
  for arm, what, key, sign in CRITERIA:
    a, b = (statistics.Sample(tuple(sign * s[key] for s in compared[x])) for x in ('pre', arm))
    by, _ = statistics.gain(a, b)
    holds = 'yes' if by.low > 0 else 'no' if by.high < 0 else 'open'
    shown = f'{by.value:.2f} [{by.low:.2f}, {by.high:.2f}]'
    text.append(tables.row(arm, what, f'{sign * a.mean:.2f}', f'{sign * b.mean:.2f}', shown, holds))
  return '\n'.join(text) + '\n'


def main() -> None:
  p = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  p.add_argument('--runs', required=True, type=pathlib.Path, help='where `run` made directories')
  p.add_argument('--scale', default='cpu')
  p.add_argument('--rows', type=int, default=64, help='held-out rows')
  flags = p.parse_args()
  e = checks.load(HERE)
  known = results.known(results.read(HERE), flags.scale, e.measured)
  found: dict[str, list] = {}
  for t in summary.everything(e, flags.scale, known):
    if t.seed in e.seeds:
      own = measured(execute.folder(flags.runs, t) / 'run', flags.rows)
      found.setdefault(t.arm, []).append(own)
      print(t.name, json.dumps(summed_up(own)), flush=True)
  head = (
    f'{flags.rows} held-out rows, means over seeds {e.seeds}; written by `by_layer.py`, which says '
    'what is compared.'
  )
  (HERE / 'by_layer.json').write_text(json.dumps(found, indent=1) + '\n')
  (HERE / 'by_layer.md').write_text(page(found, head))


if __name__ == '__main__':
  main()
