"""python -m lmjax.experiment run|report|list|index|render|carry

run experiments/x --scale=cpu   what is missing; the same command goes on
report experiments/x            results.md, figures, and a page of its runs
list                            every experiment with its verdicts
index                           the README's index of methods
render experiments/x            Kubernetes manifests (JobSet) of what is missing
carry experiments/x --since=C   keeps results where the code computes the same

example: python -m lmjax.experiment run experiments/norms --dry_run
exit status: 0 done, 1 trials failed, 2 what was given cannot be used, 75 stopped,
start it again
"""

import argparse
import functools
import os
import pathlib
import sys

from lmjax import exits
from lmjax import files
from lmjax.experiment import checks
from lmjax.experiment import curves
from lmjax.experiment import declare
from lmjax.experiment import engines
from lmjax.experiment import results as results_lib
from lmjax.experiment import runner
from lmjax.experiment import tables


def parser() -> argparse.ArgumentParser:
  p = argparse.ArgumentParser(
    prog='python -m lmjax.experiment',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  sub = p.add_subparsers(dest='command', required=True)
  sub.add_parser = functools.partial(sub.add_parser, allow_abbrev=False)
  run = sub.add_parser('run', help='runs what is missing of an experiment')
  run.add_argument('folder')
  run.add_argument('--scale', default='cpu')
  run.add_argument('--runs', default='runs/experiments', help='where run directories are made')
  run.add_argument('--engine', default='local', help=', '.join(engines.NAMES))
  run.add_argument('--jobs', type=int, default=0, help='trials at a time; 0: as cores allow')
  run.add_argument('--dry_run', action='store_true', help='says what would run, and what it costs')
  run.add_argument(
    '--option',
    action='append',
    default=[],
    metavar='NAME=VALUE',
    help='of the engine, as in --option=address=auto',
  )
  render = sub.add_parser('render', help='Kubernetes manifests of the trials that are missing')
  render.add_argument('folder')
  render.add_argument('--scale', default='pod')
  render.add_argument('--runs', default='', help='where run directories are made, in the pods')
  render.add_argument('--option', action='append', default=[], metavar='NAME=VALUE')
  report = sub.add_parser('report', help='writes results.md, figures, and a page of curves')
  report.add_argument('folder')
  report.add_argument('--runs', default='runs/experiments', help='where run directories are')
  carry = sub.add_parser('carry', help='results over a change of code that changes no program')
  carry.add_argument('folder')
  carry.add_argument('--scale', default='cpu')
  carry.add_argument('--since', required=True, help='a commit at which they were not stale')
  for name, text in (('list', 'experiments and verdicts'), ('index', "the README's index")):
    one = sub.add_parser(name, help=text)
    one.add_argument('--root', default='experiments')
    if name == 'index':
      one.add_argument('--readme', default='README.md')
  return p


def report(folder: str, runs: str) -> None:
  """Writes results.md, and a figure for each scale that has results; where run directories of its
  trials are still there, a page that compares them.
  """
  results = results_lib.read(folder)
  if not results['scales']:
    raise declare.ExperimentError(
      f'{folder}: no {results_lib.FILE} yet; python -m lmjax.experiment run {folder}'
    )
  path = pathlib.Path(folder) / 'results.md'
  files.write(path, tables.page(folder))
  say(str(path))
  e = checks.load(folder)
  for scale in e.scales:
    if scale in results['scales']:
      page = curves.write(e, folder, scale, results['scales'][scale]['records'], runs)
      if page is not None:
        say(str(page))
  from lmjax.experiment import figure

  for scale in e.scales:
    if scale in results['scales']:
      say(str(figure.write(folder, scale)))


def say(text: str) -> None:
  """Prints a line, unless nobody reads any more: what runs goes on."""
  try:
    print(text, flush=True)
  except BrokenPipeError:
    sys.stdout = open(os.devnull, 'w')


def show(root: str) -> int:
  """Every experiment with its verdicts; one that is broken does not hide the others."""
  status, begun = 0, tables.HEAD
  for folder in tables.folders(root):
    try:
      lines, results = tables.verdicts(folder), results_lib.read(folder)
      scales = checks.load(folder).scales
    except ValueError as e:
      say(f'{folder}: {e}')
      status = exits.USER
      continue
    if lines:
      say('\n'.join([*begun, *lines]))
      begun = ()
    for scale in results['scales']:
      if scale not in scales:
        say(f'{folder}: has results of scale {scale!r}, which it declares no more')
    if not results['scales']:
      say(f'{folder}: not run yet')
  return status


def index(root: str, readme: pathlib.Path) -> None:
  if not tables.folders(root):
    raise declare.ExperimentError(f'--root={root}: no experiments there')
  text = tables.with_index(readme.read_text('utf-8'), tables.index(root))
  files.write(readme, text)


def given(flags) -> dict[str, str]:
  """--option=NAME=VALUE as a dictionary."""
  return dict(o.partition('=')[::2] for o in flags.option)


def main(argv: list[str] | None = None) -> int:
  flags = parser().parse_args(argv)
  try:
    if flags.command == 'list':
      return show(flags.root)
    elif flags.command == 'index':
      index(flags.root, pathlib.Path(flags.readme))
    elif flags.command == 'report':
      report(flags.folder, flags.runs)
    elif flags.command == 'carry':
      from lmjax.experiment import carry

      carry.carry(flags.folder, flags.scale, flags.since)
    elif flags.command == 'render':
      from lmjax.experiment import jobset

      e = checks.load(flags.folder)
      print(jobset.render(e, flags.folder, flags.scale, given(flags), flags.runs), end='')
    else:
      options = given(flags)
      engine = engines.make(flags.engine, flags.jobs, options)
      status = runner.run(flags.folder, flags.scale, flags.runs, engine, say, dry=flags.dry_run)
      if not flags.dry_run and results_lib.read(flags.folder)['scales']:
        try:
          report(flags.folder, flags.runs)
        except declare.ExperimentError as e:  # what ran is kept, and its status counts
          print(f'lmjax: {e}', file=sys.stderr)
      return status
  except (ValueError, OSError) as e:
    if os.environ.get('LMJAX_TRACEBACK'):
      raise
    print(f'lmjax: {e}', file=sys.stderr)
    return exits.USER
  except KeyboardInterrupt:
    print('lmjax: interrupted; what had finished is kept', file=sys.stderr)
    return 130
  return 0


if __name__ == '__main__':
  sys.exit(main())
