"""python -m lmjax.profile --config=RECIPE [--config.key=value ...]: where the time of a step goes.

Compiles the training step of a config on its mesh, runs it on random tokens under JAX's profiler,
and prints time, FLOPs, bytes and the roofline by operation, by part of the model or by kind of
work. The trace opens in XProf, TensorBoard and Perfetto.

examples:
  python -m lmjax.profile --config=quickstart
  python -m lmjax.profile --config=quickstart --by=op --config.model.unroll=1
  python -m lmjax.profile --config=gpt2 --steps=10 --out=runs/profile --json=profile.json
"""

import argparse
import contextlib
import pathlib
import sys
from typing import Any

from lmjax import exits
from lmjax import hardware
from lmjax import main as main_lib

WARM_UP = 2


def parser() -> argparse.ArgumentParser:
  p = argparse.ArgumentParser(
    prog='python -m lmjax.profile',
    formatter_class=argparse.RawDescriptionHelpFormatter,
    description=__doc__,
    epilog=exits.PLAIN,
    allow_abbrev=False,
  )
  p.add_argument('--config', help='a recipe name, or a file, or file.py:argument')
  p.add_argument(
    '--steps', type=int, default=5, metavar='N', help='steps that are timed and traced'
  )
  p.add_argument(
    '--out', default='profile', metavar='DIR', help='gets a new folder with the trace (./profile)'
  )
  p.add_argument(
    '--by', choices=('op', 'part', 'kind'), default='part', help='what a row of the table is (part)'
  )
  p.add_argument(
    '--top', type=int, default=30, metavar='N', help='rows; the others are summed (30)'
  )
  p.add_argument('--json', default='', metavar='FILE', help='all of it as JSON as well')
  return p


def main(argv: list[str] | None = None) -> int:
  """Returns the exit status, see `exits`."""
  rest, overrides = main_lib.split(sys.argv[1:] if argv is None else argv)
  flags = parser().parse_args(rest)
  try:
    return profile(flags, overrides)
  except ValueError as e:
    print(f'lmjax: {e}', file=sys.stderr)
    return exits.USER


def profile(flags, overrides: list[tuple[str, str]]) -> int:
  """Prints the profile of a config. Raises ValueError on what the user gave."""
  if not flags.config:
    raise ValueError('--config=RECIPE is needed, as in --config=quickstart')
  for name in ('steps', 'top'):
    if getattr(flags, name) < 1:
      raise ValueError(f'--{name}={getattr(flags, name)}: at least 1 is expected')
  if '://' in flags.out:
    raise ValueError(f'--out={flags.out}: a local folder is expected')
  if flags.json and pathlib.Path(flags.json).is_dir():
    raise ValueError(f'--json={flags.json} is a folder; a file is expected')
  if flags.json and not pathlib.Path(flags.json).absolute().parent.is_dir():
    raise ValueError(f'--json={flags.json} cannot be written: there is no such folder')
  main_lib.simulated()
  from lmjax import config
  from lmjax import plan
  from lmjax.profiling import show

  found, file = measured(config.resolve(config.load(flags.config, overrides)), flags)
  out = plan.console()
  for line in show.lines(found):
    out.print(line, markup=False)
  out.print()
  out.print(show.rows_table(found, flags.by, flags.top))
  out.print()
  out.print(f'trace: {file} (Perfetto opens the .trace.json.gz beside it)', markup=False)
  if flags.json:
    show.save(flags.json, dict(found, trace=str(file)))
  return 0


def measured(resolved: dict[str, Any], flags) -> tuple[dict[str, Any], pathlib.Path]:
  """(the profile as plain values, the trace's file)."""
  import jax

  from lmjax import build
  from lmjax import checks
  from lmjax import mesh_checks
  from lmjax import run as run_lib
  from lmjax.profiling import events
  from lmjax.profiling import measure
  from lmjax.profiling import show
  from lmjax.profiling import table

  run_lib.compilation_cache()
  run = build.build(resolved)
  checks.trained(run)
  mesh = build.mesh(resolved)
  mesh_checks.devices(run, mesh)
  folder = _made(flags.out)
  with run.choices(), contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
    step = measure.prepare(run, mesh)
    state, _ = measure.steps(step, measure.first_state(run), WARM_UP)
    state, seconds = measure.steps(step, state, flags.steps)
    _, wall, devices, file = measure.traced(step, state, flags.steps, folder)
    rates = measure.rates(run.model.dtype)
  costs = table.Costs(step.program, {e.name for d in devices for e in d.events})
  spent = [events.spent(d, flags.steps, costs.above) for d in devices]
  if not spent:
    raise ValueError(f'{file} holds no operation of the step: this backend writes none')
  rows = table.rows(costs, spent, rates)
  return show.record(step, seconds, wall, spent, rates, rows), file


def _made(folder: str) -> pathlib.Path:
  path = pathlib.Path(folder).expanduser()
  try:
    path.mkdir(parents=True, exist_ok=True)
  except OSError as e:
    raise ValueError(f'--out={folder} cannot be made: {e.strerror or e}') from e
  return path


if __name__ == '__main__':
  hardware.settle()
  sys.exit(main())
