"""Looks into checkpoints, on one CPU and without the config or the code of the run.

  python -m lmjax.checkpoint inspect runs/q              steps, sizes, scores
  python -m lmjax.checkpoint inspect runs/q --step=300   arrays of one step
  python -m lmjax.checkpoint verify runs/q               every checksum
  python -m lmjax.checkpoint diff runs/a/checkpoints/300 runs/b/checkpoints/300
  python -m lmjax.checkpoint rewind runs/q --step=300    go back, then start again
  python -m lmjax.checkpoint export runs/q --out=weights.safetensors

A path is a run directory, its `checkpoints`, or one step. Exit status: 0, 1 where
verify found a problem or diff a difference, 2 for what cannot be used.

Exported arrays bear the names of the manifest, as in `params/embed/table` ('/' within a key is
written %2F); a typed PRNG key is its data. The metadata hold `step` and `lmjax`, the version that
saved it.
"""

import argparse
import contextlib
import logging
import os
import pathlib
import sys
from typing import Any, Sequence

import jax
import ml_dtypes
import numpy as np

from lmjax import bucket
from lmjax import progress
from lmjax.checkpoint import arrays
from lmjax.checkpoint import compare
from lmjax.checkpoint import manifest
from lmjax.checkpoint import rewind
from lmjax.checkpoint import scan
from lmjax.checkpoint import show
from lmjax.checkpoint import tree as tree_lib
from lmjax.interop import safetensors

_WEIGHTS = 'params,vars'
_DTYPES = {'float32': np.float32, 'bfloat16': ml_dtypes.bfloat16, 'float16': np.float16}


def main(argv: Sequence[str] | None = None) -> int:
  args = _parser().parse_args(argv)
  try:
    with _quiet('absl'), bucket.told():  # orbax tells of its own business
      status = args.run(args)
    sys.stdout.flush()
    return status
  except BrokenPipeError:  # whoever reads has seen enough
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
  except (ValueError, OSError) as e:
    print(f'lmjax.checkpoint: {show.plain(str(e))}', file=sys.stderr)
    return 2


@contextlib.contextmanager
def _quiet(name: str):
  """Errors alone are logged within."""
  log = logging.getLogger(name)
  level = log.level
  log.setLevel(logging.ERROR)
  try:
    yield
  finally:
    log.setLevel(level)


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog='python -m lmjax.checkpoint',
    description=__doc__.split('Exported arrays')[0].rstrip(),
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  commands = parser.add_subparsers(required=True, metavar='command')

  def command(name, run, text, *paths):
    sub = commands.add_parser(name, help=text, description=text)
    for path in paths:
      sub.add_argument(path, help='a run directory, its `checkpoints`, or one step')
    sub.set_defaults(run=run)
    return sub

  step = dict(type=int, metavar='N', help='the step to take from a run directory')
  sub = command('inspect', _inspect, 'shows the steps of a run, or the arrays of one step', 'path')
  sub.add_argument('--step', **step)
  sub = command('verify', _verify, 'checks every file of one step, or of all steps', 'path')
  sub.add_argument('--step', **step)
  sub = command('diff', _diff, 'compares the arrays and the cursor of two steps', 'a', 'b')
  newest = dict(step, help='the step to take from run directories; the newest by default')
  sub.add_argument('--step', **newest)
  sub = command(
    'export',
    _export,
    'writes the weights of a step as safetensors, under names such as params/embed/table',
    'path',
  )
  sub.add_argument('--step', **newest)
  sub.add_argument('--out', required=True, help='the file to write; it must not exist')
  sub.add_argument(
    '--only',
    default=_WEIGHTS,
    help="top-level entries to write, as in params,opt, or 'all'; by default params and vars, what "
    'a model needs',
  )
  sub.add_argument(
    '--dtype', choices=_DTYPES, help='of the floating-point arrays; as saved by default'
  )
  sub = command('rewind', _rewind, 'renames the steps newer than one, to resume from it', 'path')
  sub.add_argument('--step', type=int, metavar='N', required=True, help='the step to go back to')
  return parser


# ------------------------------------------------------------------ which step


def locate(path: str) -> tuple[Any, Any]:
  """(directory of steps, None), or (its directory, step) where `path` is one step."""
  remote = '://' in path
  at = bucket.place(path) if remote else pathlib.Path(path).expanduser().absolute()
  if not at.is_dir():
    raise ValueError(f'{path}: no such directory')
  if manifest.exists(at):
    return at.parent, at
  if (at / 'checkpoints').is_dir():
    return at / 'checkpoints', None
  holds_steps = any(scan.number(p.name) is not None and p.is_dir() for p in at.iterdir())
  if scan.number(at.name) is not None and not holds_steps:
    return at.parent, at
  return at, None


def pick(path: str, step: int | None) -> Any:
  """The directory of one step: `step` where it is given, else the newest that has a manifest."""
  folder, found = locate(path)
  if found is not None:
    if step is not None and found.name != str(step):
      raise ValueError(f'--step={step}: {path} is one step already, {found.name}')
    return found
  there = _scan(path, folder)
  offered = there.offered()
  if step is None and not offered:
    raise ValueError(f'{path}: no complete checkpoint in {folder}')
  if step is not None and step not in {*offered, *there.unfinished}:
    raise ValueError(
      f'--step={step}: {folder} has no such step; it has {", ".join(map(str, offered)) or "none"}'
    )
  return folder / str(offered[-1] if step is None else step)


def _scan(path: str, folder: Any) -> scan.Found:
  found = scan.scan(folder)
  if not found.offered() and not found.unfinished:
    raise ValueError(f'{path}: no checkpoint in {folder}')
  return found


# ------------------------------------------------------------------ commands


def _inspect(args: argparse.Namespace) -> int:
  folder, step_dir = locate(args.path)
  if step_dir is None and args.step is None:
    show.steps(folder, _scan(args.path, folder))
  else:
    show.step(pick(args.path, args.step))
  return 0


def _verify(args: argparse.Namespace) -> int:
  folder, step_dir = locate(args.path)
  unfinished = []
  if step_dir is not None or args.step is not None:
    dirs = [pick(args.path, args.step)]
  else:
    found = _scan(args.path, folder)
    dirs = [folder / str(s) for s in found.offered()]
    unfinished = sorted(found.unfinished)
  damaged = 0
  for where in dirs:
    problems = manifest.verify(where)
    print(f'{show.plain(where)}: {"damaged" if problems else "every file is what was saved"}')
    for problem in problems:
      print(f'  {show.plain(problem)}')
    damaged += bool(problems)
  for step in unfinished:
    print(f'{show.plain(folder / str(step))}: an unfinished save, which is not used')
  return 1 if damaged else 0


def _diff(args: argparse.Namespace) -> int:
  a, b = pick(args.a, args.step), pick(args.b, args.step)
  print(f'A  {show.plain(a)}\nB  {show.plain(b)}')
  bodies = arrays.checked(a), arrays.checked(b)
  differ = 0
  for found in compare.compare(a, b, bodies):
    print(f'{show.plain(found.name)}  {show.plain(found.text)}')
    differ += 1
  names = len(bodies[0]['leaves'].keys() | bodies[1]['leaves'].keys())
  cursors = compare.cursors(arrays.cursor(a), arrays.cursor(b))
  for text in cursors:
    print(show.plain(text))
  print(
    f'{differ} of {names} arrays differ' if differ else f'all {names} arrays are bit-equal',
    'the cursors differ' if cursors else 'the cursors are equal',
    sep='; ',
  )
  return 1 if differ or cursors else 0


def _export(args: argparse.Namespace) -> int:
  safetensors.check_new(args.out)
  where = pick(args.path, args.step)
  body = arrays.checked(where)
  only = [] if args.only == 'all' else [part for part in args.only.split(',') if part]
  if args.only == _WEIGHTS:  # a model may have no vars
    only = [part for part in only if part in arrays.tops(body)]
  names, found = arrays.chosen(where, body, only), {}
  total = sum(tree_lib.nbytes(body['leaves'][n]) for n in names)
  with progress.Count('exporting', total, 'bytes') as count:
    for group in arrays.groups(body, names):
      some = arrays.read(where, body, group)
      found |= {k: _cast(k, v, args.dtype) for k, v in some.items()} if args.dtype else some
      count.add(sum(v.nbytes for v in some.values()))
  metadata = {'step': str(body['step']), 'lmjax': body['lmjax']}
  with show.busy(f'writing {args.out}'):
    safetensors.write(args.out, found, metadata)
  total = sum(v.nbytes for v in found.values())
  print(f'{args.out}: {len(found)} arrays, {show.size(total)}, step {body["step"]}')
  return 0


def _rewind(args: argparse.Namespace) -> int:
  folder, found = locate(args.path)
  if found is not None:
    raise ValueError(f'{args.path} is one step; give the run directory and --step')
  with _quiet('lmjax'):  # what is renamed is said below
    newer = rewind.rewind(folder, args.step)
  print(f'{show.plain(folder)}: the run resumes at step {args.step}; renamed: {newer or "nothing"}')
  return 0


def _cast(name: str, array: np.ndarray, dtype: str) -> np.ndarray:
  """Floating-point arrays in another dtype; raises ValueError where a finite number would become
  infinite.
  """
  if not jax.dtypes.issubdtype(array.dtype, np.floating):
    return array
  with np.errstate(over='ignore'):
    out = array.astype(_DTYPES[dtype])
  if (np.isfinite(out) != np.isfinite(array)).any():
    raise ValueError(f'--dtype={dtype}: {name} has numbers beyond its range; give another dtype')
  return out
