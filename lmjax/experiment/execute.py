"""One trial as a process of `lmjax.main`, with what it cost. Engines call this, wherever they run.

Preemption is normal: a run that ends with status 75, or that a signal killed, is started again in
the same workdir and goes on from its checkpoint. A run that broke down (65) has diverged, which is
a result. Everything else is a failure, told by the run's own last words.
"""

import json
import math
import os
import pathlib
import subprocess
import sys
import threading
import time
from typing import Any, Callable, Sequence

from lmjax import exits
from lmjax import files
from lmjax import tracking
from lmjax.experiment import measures
from lmjax.experiment.declare import ExperimentError
from lmjax.experiment.trials import Trial

OUTCOME = 'outcome.json'
ATTEMPTS = 5  # in a row without a step made
DONE, DIVERGED, FAILED, STOPPED = 'done', 'diverged', 'failed', 'stopped'
ENDED = (DONE, DIVERGED)  # a result, which is not tried again
COST = ('seconds', 'cpu_seconds', 'memory', 'attempts')


class Stopping:
  """Told once that everything is to end: running trials get SIGTERM, save, and go on later."""

  def __init__(self):
    self._lock, self._running, self.told = threading.Lock(), set(), False

  def add(self, process: subprocess.Popen) -> None:
    with self._lock:
      self._running.add(process)
      if self.told:
        process.terminate()

  def remove(self, process: subprocess.Popen) -> None:
    with self._lock:
      self._running.discard(process)

  def stop(self) -> None:
    with self._lock:
      self.told = True
      for process in self._running:
        process.terminate()


def folder(runs: Any, trial: Trial) -> pathlib.Path:
  """Holds the run directory `run`, `log.txt` and `outcome.json`."""
  return place(runs, trial.base, trial.identity, trial.code)


def place(runs: Any, base: str, identity: str, code: str) -> pathlib.Path:
  """As `folder`, of a record."""
  return pathlib.Path(runs) / f'{pathlib.Path(base).stem}-{identity}-{code[:8]}'


def execute(
  trial: Trial,
  runs: Any,
  measure: Callable,
  cpus: Sequence[int] | None = None,
  stopping: Stopping | None = None,
) -> dict[str, Any]:
  """Runs a trial to its end and returns its record; one that ended before is read, not run.

  Args:
    runs: where run directories are made, those of the runs before among them.
    measure: lines of metrics -> the number that is compared.
    cpus: the cores it may use, or None for all.
  """
  stopping = stopping or Stopping()
  path = folder(runs, trial)
  found = read(path)
  if found is not None and found['status'] in ENDED:
    return found | dict(value=_value(measure, path))
  if stopping.told:
    return dict(status=STOPPED, message='not begun', value=None)
  below = _below(trial, runs)
  path.mkdir(parents=True, exist_ok=True)
  cost = dict.fromkeys(COST, 0)
  if found is not None:
    cost |= {k: found[k] for k in cost}
  idle, status = 0, exits.RETRY
  while idle < ATTEMPTS and not stopping.told and (status == exits.RETRY or status < 0):
    before = last_step(path)
    status = _attempt(trial, runs, cpus, stopping, cost)
    idle = idle + 1 if last_step(path) == before else 0
  record = _record(path, status, cost, stopping) | (dict(before=below) if below else {})
  files.write(path / OUTCOME, json.dumps(record))
  return record | dict(value=_value(measure, path))


def _below(trial: Trial, runs: Any) -> dict[str, dict[str, float]]:
  """{run: what it cost} of the runs that this one rests on. Raises ExperimentError where one of
  them did not end well.
  """
  out = {}
  for t in trial.chain()[:-1]:
    found = read(folder(runs, t)) or dict(status='it has not ended', message='')
    if found['status'] != DONE:
      text = f'{found["status"]} {found["message"]}'.rstrip()
      raise ExperimentError(f'it begins from {t.name}: {text}')
    out[f'{t.identity} {t.code}'] = {k: found[k] for k in ('seconds', 'cpu_seconds')}
  return out


def _value(measure: Callable, path: pathlib.Path) -> float | None:
  value = float(measure(tracking.read_metrics(path / 'run')))
  return value if math.isfinite(value) else None


def read(path: pathlib.Path) -> dict[str, Any] | None:
  """The record of a workdir, or None where there is none that can be used."""
  try:
    found = files.read_json(path / OUTCOME)
  except ValueError:
    return None
  known = (*COST, 'status', 'message', 'loss', 'tokens', 'step_time', 'state_bytes', 'versions')
  return found if isinstance(found, dict) and set(known) <= set(found) else None


def last_step(path: pathlib.Path) -> int:
  """The newest step in a run's metrics, those that a later resume repeats included."""
  lines = tracking.read_metrics(path / 'run')
  return max((x['step'] for x in lines), default=0)


def _attempt(trial: Trial, runs, cpus, stopping: Stopping, cost) -> int:
  """Starts the run once and waits for it; returns its status, -N where signal N ended it."""
  path = folder(runs, trial)
  before = (folder(runs, trial.before) / 'run').absolute() if trial.before else ''
  env = {**os.environ, 'PYTHONUNBUFFERED': '1'}
  command = [sys.executable, '-m', 'lmjax.main', *trial.words(path / 'run', before)]
  if cpus is not None and hasattr(os, 'sched_setaffinity'):
    # Of the process itself: code between fork and exec deadlocks where threads run.
    pin = (
      f'import os, sys; os.sched_setaffinity(0, {list(cpus)}); os.execv(sys.argv[1], sys.argv[1:])'
    )
    command = [sys.executable, '-c', pin, *command]
  begun = time.monotonic()
  with open(path / 'log.txt', 'ab') as log:
    process = subprocess.Popen(
      command,
      stdin=subprocess.DEVNULL,
      stdout=log,
      stderr=subprocess.STDOUT,
      env=env,
      start_new_session=True,  # Ctrl-C is the runner's, which tells the run
    )
    stopping.add(process)
    try:
      _, waited, usage = os.wait4(process.pid, 0)
      process.returncode = os.waitstatus_to_exitcode(waited)
    finally:
      stopping.remove(process)
  cost['seconds'] += time.monotonic() - begun
  cost['cpu_seconds'] += usage.ru_utime + usage.ru_stime
  scale = 1 if sys.platform == 'darwin' else 1024  # of ru_maxrss
  cost['memory'] = max(cost['memory'], usage.ru_maxrss * scale)
  cost['attempts'] += 1
  return process.returncode


def _record(path: pathlib.Path, status: int, cost, stopping: Stopping) -> dict[str, Any]:
  lines = tracking.read_metrics(path / 'run')
  found, text = measures.summary(lines), ''
  if status == 0 and found['loss'] is not None:
    state = DONE
  elif status == 0 and not any(x['kind'] == 'eval' for x in lines):
    state, text = FAILED, 'it ended without a validation loss'
  elif status in (0, exits.BROKEN):
    state, text = DIVERGED, _last_words(path) if status else 'its last loss is not finite'
  elif stopping.told:
    state = STOPPED
  else:
    state, text = FAILED, f'status {status}: {_last_words(path)}'
  try:
    versions = (files.read_json(path / 'run' / 'versions.json') or [{}])[-1]
  except ValueError:  # it ended before there was a run
    versions = {}
  versions = {k: v for k, v in versions.items() if k not in ('time', 'host', 'platform')}
  return dict(status=state, message=text, **found, **cost, versions=versions)


def _last_words(path: pathlib.Path) -> str:
  try:
    lines = (path / 'log.txt').read_text('utf-8', 'replace').split('\n')
  except OSError:
    return ''
  return next((x.strip() for x in reversed(lines) if x.strip()), '')[:500]
