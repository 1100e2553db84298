"""Training step on the CPU: lmjax against PyTorch and MaxText, the same tiny GPT, interleaved.

command: python experiments/perf/cpu_step.py   (writes cpu_step.json beside this file)

The model: 4 layers, width 256, 4 heads of 64, T = 256, bytes, float32, RMS norm, GELU (tanh) of
1024, learned positions, tied embeddings, AdamW, 16 rows a step. lmjax runs its real step: documents
masked, norms and metrics computed, and the guard against updates that are not finite; PyTorch runs
forward, backward and a `foreach` AdamW, eager and under torch.compile, and does none of those
three. MaxText (see `maxtext_contestant.py`) runs its own train step, with segments and norms too;
it wants an environment of its own, whose interpreter `--maxtext-python` names.

Every contestant is a live process. They take turns, a few steps each, so that whatever else the
machine does hits all alike: only ratios between turns of one round mean anything; tokens a second
hold for this machine at this hour. On a busy machine even a ratio is unfair, because PyTorch's
threads wait for each other by spinning: rounds go on until enough of them were quiet for both
sides of every ratio, and only those count (all, where fewer than three were). `--cores 1` races
without that, one thread each on one core; there CPU seconds can be compared whatever the load.

`NAME+heap` is the same contestant with a malloc that keeps what is freed, see `keep_heap`.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import pathlib
import platform
import statistics
import sys

import _turns
from cpu_contestants import LENGTH, cores, packages, worker

CONTESTANTS = (
  'lmjax+heap',
  'lmjax',
  'lmjax-scan+heap',
  'lmjax-scan',
  'torch-eager',
  'torch-compile+heap',
  'torch-compile',
  'maxtext',
  'maxtext+heap',
  'maxtext-scan',
  'maxtext-gpt3',
  'maxtext-gpt3+heap',
  'maxtext-gpt3-scan',
)
BASE = 'torch-compile'
PAIRS = (
  ('lmjax-scan', 'lmjax'),
  ('lmjax-scan+heap', 'lmjax+heap'),
  ('lmjax+heap', 'torch-compile+heap'),
  *(('lmjax+heap', k) for k in CONTESTANTS if k.startswith('maxtext')),
  ('lmjax', 'maxtext'),
)


def start(kind: str, flags) -> _turns.Live:
  """A live contestant. Raises _turns.Missing, which says why there is none."""
  if kind.startswith('torch') and importlib.util.find_spec('torch') is None:
    raise _turns.Missing('torch is not installed')
  if kind.startswith('maxtext') and not flags.maxtext_python:
    raise _turns.Missing('--maxtext-python names no interpreter')
  python = flags.maxtext_python if kind.startswith('maxtext') else sys.executable
  command = [python, __file__, '--worker', kind, '--rows', str(flags.rows)]
  command += ['--cores', str(flags.cores)]
  own = dict(lmjax=flags.set, maxtext=flags.maxtext_set)
  command += [f'--set={o}' for name, words in own.items() if kind.startswith(name) for o in words]
  return _turns.Live(command)


def race(flags):
  """(what each contestant said, why others are missing, its turns round by round)."""
  live, said, missing = {}, {}, {}
  with contextlib.ExitStack() as stack:
    for kind in flags.only or CONTESTANTS:
      try:
        found = stack.enter_context(contextlib.closing(start(kind, flags)))
      except _turns.Missing as e:
        missing[kind] = str(e)
        print(f'{kind}: left out, {e}', flush=True)
        continue
      live[kind], said[kind] = found, found.said
      print(
        f'{kind}: {found.said["params"]:,} parameters, first step after '
        f'{found.said["first_step_s"]} s',
        flush=True,
      )
    turns = {kind: [] for kind in live}
    for n in range(flags.most_rounds if live else 0):
      for kind, process in live.items():
        turns[kind].append(turn(process, flags))
      text = '  '.join(f'{k} {t[-1]["wall"] / flags.steps:.3f} s' for k, t in turns.items())
      print(f'round {n}: {text}', flush=True)
      if enough(turns, flags.rounds):
        break
  return said, missing, turns


def turn(process: _turns.Live, flags) -> dict:
  """Seconds, CPU seconds and loss of a turn, and the share of all cores that others used."""
  busy = busy_seconds()
  found = process.turn(flags.steps)
  others = max(0.0, busy_seconds() - busy - found['cpu'])
  return found | dict(others=others / found['wall'] / (os.cpu_count() or 1))


def busy_seconds() -> float:
  """CPU seconds that all processes of this machine have used; 0 where that is unknown."""
  with contextlib.suppress(OSError):
    words = pathlib.Path('/proc/stat').read_text().split('\n')[0].split()[1:9]
    user, nice, system, _, _, irq, softirq, steal = map(int, words)
    return (user + nice + system + irq + softirq + steal) / os.sysconf('SC_CLK_TCK')
  return 0.0


def quiet(turns, *kinds: str) -> list[int]:
  """Rounds in which all others used less than a twentieth of the machine while these had turns."""
  found = [turns[k] for k in kinds]
  return [n for n, ts in enumerate(zip(*found)) if all(t['others'] < 0.05 for t in ts)]


def counted(turns, *kinds: str):
  """The turns of these contestants in quiet rounds; in all rounds where fewer than three were."""
  kept = quiet(turns, *kinds)
  return [turns[k] if len(kept) < 3 else [turns[k][n] for n in kept] for k in kinds]


def enough(turns, rounds: int) -> bool:
  return all(len(quiet(turns, k, BASE if BASE in turns else k)) >= rounds for k in turns)


def ratio(turns, a: str, b: str, key: str = 'wall'):
  """How many times faster a is than b: median, smallest and largest over the rounds that count."""
  found = [y[key] / x[key] for x, y in zip(*counted(turns, a, b))]
  return dict(
    median=statistics.median(found),
    min=min(found),
    max=max(found),
    quiet_rounds=len(quiet(turns, a, b)),
  )


def summary(turns, flags):
  """Rows of the table: speed of every contestant, and against BASE."""
  out = {}
  for kind in turns:
    (found,) = counted(turns, kind)
    wall = [t['wall'] / flags.steps for t in found]
    row = dict(
      tokens_per_second=flags.rows * LENGTH / statistics.median(wall),
      cpu_seconds_per_step=statistics.median(t['cpu'] / flags.steps for t in found),
      loss=found[-1]['loss'],
    )
    if BASE in turns:
      row |= dict(ratio=ratio(turns, kind, BASE), cpu_ratio=ratio(turns, kind, BASE, 'cpu'))
    out[kind] = row
  return out


def show(table, turns):
  print(f'\n{"":20s} tokens/s  CPU-s/step  x {BASE} (min to max; quiet rounds)   by CPU time')
  for kind, row in table.items():
    line = f'{kind:20s} {row["tokens_per_second"]:8,.0f}  {row["cpu_seconds_per_step"]:10.3f}'
    if 'ratio' in row:
      line += f'  {words(row["ratio"])}   {row["cpu_ratio"]["median"]:.2f}'
    print(line)
  for name, row in pairs(turns).items():
    print(f'{name}: {words(row["ratio"])}   {row["cpu_ratio"]["median"]:.2f} by CPU time')


def pairs(turns):
  """The first of each pair against the second, where both ran."""
  return {
    f'{a} / {b}': dict(ratio=ratio(turns, a, b), cpu_ratio=ratio(turns, a, b, 'cpu'))
    for a, b in PAIRS
    if a in turns and b in turns
  }


def words(r) -> str:
  return f'{r["median"]:.2f} ({r["min"]:.2f} to {r["max"]:.2f}; {r["quiet_rounds"]})'


def versions():
  out = dict(
    python=platform.python_version(), machine=platform.machine(), cores=cores(), cpu=cpu_name()
  )
  return out | packages()


def cpu_name() -> str:
  with contextlib.suppress(OSError):
    for line in pathlib.Path('/proc/cpuinfo').read_text().splitlines():
      if line.startswith('model name'):
        return line.partition(':')[2].strip()
  return platform.processor()


def main():
  p = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  p.add_argument('--rows', type=int, default=16, help=f'rows of {LENGTH} tokens a step')
  p.add_argument('--rounds', type=int, default=7, help='quiet ones, for each contestant')
  p.add_argument('--most-rounds', type=int, default=30, help='quiet or not')
  p.add_argument('--cores', type=int, default=cores())
  p.add_argument('--steps', type=int, default=3, help='steps of a turn')
  p.add_argument('--only', nargs='*', choices=CONTESTANTS)
  p.add_argument(
    '--set',
    action='append',
    default=[],
    metavar='KEY=VALUE',
    help='an override of the lmjax config',
  )
  p.add_argument('--maxtext-python', metavar='PATH', help='an interpreter that imports maxtext')
  p.add_argument(
    '--maxtext-set', action='append', default=[], metavar='KEY=VALUE', help='a setting of MaxText'
  )
  p.add_argument(
    '--out',
    default=str(pathlib.Path(__file__).with_name('cpu_step.json')),
    help='results; empty for none',
  )
  p.add_argument('--worker', help=argparse.SUPPRESS)
  flags = p.parse_args()
  if flags.worker:
    if hasattr(os, 'sched_setaffinity'):
      os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: flags.cores])
    return worker(flags.worker, flags.rows, flags.set)
  load = os.getloadavg()
  said, missing, turns = race(flags)
  if not turns:
    raise SystemExit('no contestant could run')
  table = summary(turns, flags)
  show(table, turns)
  if flags.out:
    result = dict(
      versions=versions(),
      rows=flags.rows,
      cores=flags.cores,
      rounds=len(next(iter(turns.values()))),
      steps=flags.steps,
      overrides=dict(lmjax=flags.set, maxtext=flags.maxtext_set),
      load_average=dict(before=load, after=os.getloadavg()),
      started=said,
      missing=missing,
      table=table,
      pairs=pairs(turns),
      turns=turns,
    )
    pathlib.Path(flags.out).write_text(json.dumps(result, indent=1) + '\n')


if __name__ == '__main__':
  main()
