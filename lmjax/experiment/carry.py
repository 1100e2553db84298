"""Results that outlive a change of the code that changes no program.

A record is stale once the syntax of a part that it used has changed, though most changes (a new
argument with a default, another name) leave what is computed as it was. `carry` proves that: the
programs of initialization, step and evaluation of every stale record, as XLA gets them, are made
with the code of a commit at which the record was not stale, and with the code as it is now. Where
they are equal the record counts for the new code; where they differ it stays stale.
"""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any, Callable, Iterator

import lmjax
from lmjax.experiment import checks
from lmjax.experiment import declare
from lmjax.experiment import execute
from lmjax.experiment import program
from lmjax.experiment import results as results_lib
from lmjax.experiment import summary

Record = dict[str, Any]


def carry(folder: Any, scale: str, since: str, say: Callable[[str], None] = print) -> int:
  """Carries over what can be; the number of records that stay stale. Raises ExperimentError for a
  folder outside a git repository, a commit that is not there, or code that does not run.
  """
  with results_lib.changed(folder) as results:
    return _carry(folder, checks.load(folder), results, scale, since, say)


def _carry(folder, e, results, scale: str, since: str, say) -> int:
  checks.scale_of(e, scale)
  known = results_lib.known(results, scale, e.measured)
  stale = [r for r in summary.left_out(e, scale, known)[0] if r['status'] in execute.ENDED]
  if not stale:
    say(f'{folder}, scale {scale}: no stale records')
    return 0
  say(f'{folder}, scale {scale}: {len(stale)} stale records; their programs are made twice')
  root = pathlib.Path(_git(folder, 'rev-parse', '--show-toplevel').strip())
  where = pathlib.Path(folder).resolve().relative_to(root.resolve())
  package = pathlib.Path(lmjax.__file__).parent.parent
  with _checkout(folder, since) as old:
    trees = (old, old / where), (package, pathlib.Path(folder).resolve())
    jobs = [_start(*tree, scale, stale) for tree in trees]
    try:
      before, now = (_lines(job, len(stale)) for job in jobs)
    finally:
      for job in jobs:
        job.kill()
  left: dict[str, int] = {}
  for record, a, b in zip(stale, before, now):
    why = _obstacle(record, a, b, since)
    if why:
      left[why] = left.get(why, 0) + 1
    else:
      record.update(identity=b['identity'], code=b['code'])
  say(f'carried over: {len(stale) - sum(left.values())}')
  for why, n in left.items():
    say(f'still stale: {n}: {why}')
  return sum(left.values())


def _obstacle(record: Record, before: Record, now: Record, since: str) -> str:
  """Why a record cannot be carried over, or nothing."""
  arm = f'{record["arm"]}, {record["steps"]} steps'
  if 'error' in now:
    return f'{arm}: {now["error"]}'
  if 'error' in before:
    return f'{arm}: at {since}: {before["error"]}'
  if (before['identity'], before['code']) != (record['identity'], record['code']):
    return f'{arm}: stale at {since} already'
  if before['program'] != now['program']:
    return f'{arm}: computes something else now'
  return ''


def _git(folder: Any, *words: str) -> str:
  done = subprocess.run(['git', '-C', str(folder), *words], capture_output=True, text=True)
  if done.returncode:
    raise declare.ExperimentError(f'git {" ".join(words)}: {done.stderr.strip().splitlines()[-1]}')
  return done.stdout


@contextlib.contextmanager
def _checkout(folder: Any, commit: str) -> Iterator[pathlib.Path]:
  """The files of a commit, in a temporary folder."""
  with tempfile.TemporaryDirectory() as temporary:
    tree = pathlib.Path(temporary) / 'code'
    _git(folder, 'worktree', 'add', '--detach', '--force', str(tree), commit)
    try:
      yield tree
    finally:
      _git(folder, 'worktree', 'remove', '--force', str(tree))


def _start(tree: pathlib.Path, folder: pathlib.Path, scale: str, records: list[Record]):
  """A process that says what the records' trials compute with the package in `tree`."""
  wanted = [[r['arm'], r['point'], r['seed'], r['steps']] for r in records]
  process = subprocess.Popen(
    [sys.executable, '-P', program.__file__, str(folder), scale],
    env=os.environ | {'PYTHONPATH': str(tree)},
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  process.stdin.write(json.dumps(wanted))
  process.stdin.close()
  return process


def _lines(process: subprocess.Popen, n: int) -> list[Record]:
  found = [json.loads(line) for line in process.stdout if line.startswith('{')]
  if process.wait() or len(found) != n:
    raise declare.ExperimentError(
      f'{" ".join(process.args)}: ended with {process.returncode} after {len(found)} of {n} trials'
    )
  return found
