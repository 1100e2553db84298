"""How long a training step takes to trace, lower and compile by depth, scanned and unrolled.

  python experiments/perf/compile_time.py --out=experiments/perf/compile_time.json   12 minutes, CPU
  python experiments/perf/compile_time.py --width=1024 --head=128 --length=2048 --dtype=bfloat16 \\
      --out=compile_time.json                                                        a GPU
  python experiments/perf/compile_time.py --depths=2,4 --width=16 --head=8 --length=16 --rounds=1
      tries it

The quickstart recipe with narrow layers: `scanned` has model.unroll=1, one layer's program in a
loop, `unrolled` has model.unroll=1000. Nothing is run. No persistent cache, and what jax keeps in
the process is cleared before each. They take turns, `--rounds` times after a first compilation that
does not count. Seconds are CPU time of the process, all threads included (compilers use several),
medians of the rounds.

  exponent  p of seconds ~ depth^p between the two largest depths; 0 is flat, 1 is linear
  slope     seconds a layer, by least squares over all depths

The goal is that the scanned step is flat: an exponent of the total between -0.1 and 0.1.

`cache`: the same step of the largest depth with an empty persistent cache, then with what that left
there, as a second start of the command line finds it (`lmjax.run.compilation_cache`).
"""

import argparse
import statistics
import sys
import tempfile
import time

import jax
from jax.experimental.compilation_cache import compilation_cache
import numpy as np

import _report
import _step

KINDS = {'scanned': '1', 'unrolled': '1000'}
STAGES = 'trace', 'lower', 'compile'
COLUMNS = 'layers', *(f'{k}, {s}' for k in KINDS for s in (*STAGES, 'total'))
FLAT = 0.1


def compiled(run) -> dict[str, float]:
  """CPU seconds of each stage, of a step that jax has not seen."""
  jax.clear_caches()
  step, key = jax.jit(run.step, donate_argnums=0), jax.eval_shape(lambda: jax.random.key(0))
  at = [time.process_time()]
  traced = step.trace(run.state_shapes, run.batch_shapes(), key)
  at.append(time.process_time())
  lowered = traced.lower()
  at.append(time.process_time())
  lowered.compile()
  at.append(time.process_time())
  out = {s: b - a for s, a, b in zip(STAGES, at, at[1:])}
  return out | {'total': at[-1] - at[0]}


def race(runs: dict, rounds: int) -> dict:
  """{kind: {depth: median seconds by stage}}."""
  found = {k: [] for k in runs}
  compiled(next(iter(runs.values())))  # what the first compilation of a process loads
  for _ in range(rounds):
    for k, run in runs.items():
      found[k].append(compiled(run))
  out = {}
  for (kind, depth), own in found.items():
    row = {s: statistics.median(o[s] for o in own) for s in own[0]}
    out.setdefault(kind, {})[depth] = row | {'rounds': [o['total'] for o in own]}
    print(kind, depth, {s: round(x, 2) for s, x in row.items()}, flush=True)
  return out


def growth(by_depth: dict) -> dict:
  """Exponents and slopes of each stage."""
  depths, out = list(by_depth), {}
  for s in (*STAGES, 'total'):
    costs = [r[s] for r in by_depth.values()]
    slope = float(np.polyfit(depths, costs, 1)[0])
    out[s] = dict(exponent=_report.exponent(depths, costs), slope=slope)
  return out


def cache(run) -> dict:
  """A step cold and warm; the persistent cache is off again behind it."""
  out = {}
  with tempfile.TemporaryDirectory() as folder:
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
    _cache_at(folder)
    for name in ('cold', 'warm'):
      out[name] = compiled(run)
    _cache_at(None)
  return out | {'times_faster': out['cold']['total'] / out['warm']['total']}


def _cache_at(folder: str | None):
  jax.config.update('jax_enable_compilation_cache', folder is not None)
  jax.config.update('jax_compilation_cache_dir', folder)
  compilation_cache.reset_cache()


def page(report: dict) -> str:
  kinds, rows = report['kinds'], []
  for depth in report['settings']['depths']:
    rows.append((depth, *(f'{kinds[k][depth][s]:.2f}' for k in KINDS for s in (*STAGES, 'total'))))
  for what in ('exponent', 'slope'):
    own = report['growth']
    rows.append((what, *(f'{own[k][s][what]:.3f}' for k in KINDS for s in (*STAGES, 'total'))))
  lines = [_report.table(COLUMNS, rows)]
  for name in report['cache']:
    c = report['cache'][name]
    times = ', '.join(f'{w} {c[w]["total"]:.2f}' for w in ('cold', 'warm'))
    lines.append(f'persistent cache, {name}: {times} s, {c["times_faster"]:.1f} times as fast')
  return '\n\n'.join([*lines, f'scanned is flat: {report["flat"]}'])


def flags_of():
  p = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  p.add_argument('--depths', default='2,4,8,16,32')
  p.add_argument('--width', type=int, default=64)
  p.add_argument('--head', type=int, default=32, help='size of a head')
  p.add_argument('--length', type=int, default=128)
  p.add_argument('--rows', type=int, default=8)
  p.add_argument('--dtype', default='float32')
  p.add_argument('--rounds', type=int, default=3)
  p.add_argument('--out', help='a JSON file for the result')
  flags = p.parse_args()
  flags.depths = [int(n) for n in flags.depths.split(',')]
  return flags


def main() -> int:
  flags = flags_of()
  _cache_at(None)
  made = lambda kind, depth: _step.make(
    'quickstart',
    flags.rows,
    data__length=str(flags.length),
    batch_tokens=str(flags.rows * flags.length),
    model__width=str(flags.width),
    model__depth=str(depth),
    model__unroll=KINDS[kind],
    model__dtype=flags.dtype,
    model__mixer=f'gqa(head_dim={flags.head})',
  )
  runs = {(k, n): made(k, n) for n in flags.depths for k in KINDS}
  kinds = race(runs, flags.rounds)
  report = _report.head(flags) | dict(kinds=kinds)
  report['growth'] = {k: growth(own) for k, own in kinds.items()}
  report['flat'] = abs(report['growth']['scanned']['total']['exponent']) <= FLAT
  report['cache'] = {k: cache(runs[k, flags.depths[-1]]) for k in KINDS}
  print(page(report))
  _report.write(report, flags.out)
  return 0


if __name__ == '__main__':
  sys.exit(main())
