"""The graph of skills of `skill_it` from one finished run for each source.

  python -m lmjax.data.mixtures._graph --out=graph.json RUN_A RUN_B RUN_C

Each run evaluates all sources of config.data.train in config.data.valid and trains on one of them,
config.data.mixture='single(source="NAME")', in which alone their configs differ. Row i of the graph
is that run's relative fall of the loss of each source j, (L_j(0) - L_j(H)) / L_j(0), over its H
steps. The file is JSON: `sources` {name: spec}, `graph` (a list of rows), `steps`, and `tokens`,
which all runs together took and which belong to the cost of the method.
"""

import argparse
import fnmatch
import json
import math
import pathlib
import sys

import numpy as np

from lmjax import config as config_lib
from lmjax import files
from lmjax import rundir
from lmjax import specs
from lmjax import tracking
from lmjax.data.mixtures import _match


def read(path: str) -> tuple[dict[str, str], np.ndarray]:
  """({name: spec}, float64 (m, m)) of a file. Raises ValueError naming the file."""
  found = files.read_json(files.expanded(path))
  found = found if isinstance(found, dict) else {}
  sources, graph = found.get('sources'), found.get('graph')
  named = isinstance(sources, dict) and all(isinstance(s, str) for s in sources.values())
  m = len(sources) if named else 0
  rows = graph if isinstance(graph, list) and len(graph) == m > 0 else [()]
  number = lambda x: isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x)
  if not all(isinstance(r, list) and len(r) == m and all(map(number, r)) for r in rows):
    raise ValueError(
      f'{path} is no graph of sources: an object with `sources`, names and specs, and `graph`, a '
      'square of numbers, is expected, as python -m lmjax.data.mixtures._graph writes it'
    )
  return sources, np.array(graph, np.float64)


def make(runs: list[str]) -> dict:
  """What the file holds, from finished runs. Raises ValueError naming the run."""
  configs = [rundir.read_config(run) for run in runs]
  rows, steps = {}, configs[0]['steps']
  sources = _match.sources(configs[0]['data']['train'])
  check_alike(runs, configs)
  for run, c in zip(runs, configs):
    call = specs.call(c['data']['mixture'])
    if call.name != 'single':
      raise ValueError(
        f'{run}: config.data.mixture={c["data"]["mixture"]!r}; single(source="...") is expected'
      )
    name = dict(call.args)['source']
    if name in rows:
      raise ValueError(f'{run}: the source {name} has a run already')
    rows[name] = falls(run, list(sources), steps)
  missing = [n for n in sources if n not in rows]
  if missing:
    raise ValueError(f'no run is on the source {missing[0]}; one for each of them is expected')
  tokens = sum(c['steps'] * c['batch_tokens'] for c in configs)
  return dict(sources=sources, graph=[rows[n] for n in sources], steps=steps, tokens=tokens)


def check_alike(runs: list[str], configs: list[dict]) -> None:
  """Raises ValueError naming a run, and the key in which it differs from the first one."""
  first = compared(configs[0])
  for run, c in zip(runs, configs):
    mine = compared(c)
    for key in sorted(first.keys() | mine.keys()):
      if mine.get(key) != first.get(key):
        raise ValueError(
          f'{run}: its config.{key} is {specs.brief(mine.get(key))}, that of {runs[0]} is '
          f'{specs.brief(first.get(key))}; runs that differ in config.data.mixture alone are '
          'expected'
        )
    if c['eval']['batches']:
      raise ValueError(
        f'{run}: config.eval.batches={c["eval"]["batches"]}: all held-out rows (0) are expected'
      )


def compared(config: dict) -> dict:
  """{key: value} of what the runs must have in common: all that changes tokens or mathematics, and
  the held-out rows.
  """
  outside = [p for p in config_lib.OUTSIDE_FINGERPRINT if p != 'data.valid']
  out = lambda key: any(fnmatch.fnmatchcase(key, p) for p in (*outside, 'data.mixture'))
  return {k: v for k, v in rundir.flatten(config).items() if not out(k)}


def falls(run: str, names: list[str], steps: int) -> list[float]:
  """The relative fall of each source's held-out loss from the first step to the last."""
  lines = tracking.read_metrics(rundir.local(run))
  at = lambda kind, step: next((x for x in lines if (x['kind'], x['step']) == (kind, step)), {})
  first, last = at('mixture', 0), at('eval', steps)
  for name in names:
    if f'nll/{name}' not in first or f'nll/{name}' not in last:
      raise ValueError(
        f'{run}: it lacks the held-out loss of source {name} before its first step or after its '
        f'last ({steps}); a finished run whose config.data.valid has that source is expected'
      )
  return [1 - last[f'nll/{n}'] / first[f'nll/{n}'] for n in names]


def main(argv: list[str] | None = None) -> int:
  p = argparse.ArgumentParser(
    prog='python -m lmjax.data.mixtures._graph',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  p.add_argument('--out', required=True, help='the file to write')
  p.add_argument('runs', nargs='+', help='run directories, one for each source')
  flags = p.parse_args(argv)
  try:
    files.write(pathlib.Path(flags.out), json.dumps(make(flags.runs), indent=1) + '\n')
  except (ValueError, OSError) as e:
    print(f'lmjax: {e}', file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  sys.exit(main())
