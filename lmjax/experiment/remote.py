"""What engines share whose trials run in processes of their own, often on other machines.

Everything that an engine and its trials tell each other goes through files below `runs`, which all
machines must see: run directories, and `Control`. The engine may therefore be told to stop in the
middle of anything, and a machine that is gone leaves nothing behind but what it had saved.
"""

import contextlib
import inspect
import pathlib
import shutil
import socket
import subprocess
import threading
import time
import uuid
from typing import Any, Callable, Sequence

from lmjax import rundir
from lmjax import tracking
from lmjax.experiment import execute
from lmjax.experiment import measures
from lmjax.experiment import trials as trials_lib
from lmjax.experiment.declare import ExperimentError
from lmjax.experiment.trials import Trial

LOOK = 0.5  # seconds from one look at a file to the next
WAIT = 300.0  # seconds for an earlier process of the same run to save and end


class Control:
  """A folder below `runs`: who has begun, and whether all are to stop. A plain value, so that it
  travels with a trial.
  """

  def __init__(self, runs: Any):
    self.path = pathlib.Path(runs).absolute() / f'.engine-{uuid.uuid4().hex[:12]}'
    self.path.mkdir(parents=True)

  def stop(self) -> None:
    (self.path / 'stop').touch()

  def told(self) -> bool:
    return (self.path / 'stop').exists()

  def begin(self, trial: Trial) -> None:
    with contextlib.suppress(OSError):  # only a mark; a removed folder means that nobody looks
      (self.path / f'{trial.identity}-{trial.code}').touch()

  def begun(self, trial: Trial) -> bool:
    return (self.path / f'{trial.identity}-{trial.code}').exists()

  def close(self) -> None:
    shutil.rmtree(self.path, ignore_errors=True)


class Guarded(execute.Stopping):
  """Ends its runs by SIGTERM, at which they save, also where this process is killed or leaves in
  the middle: the next attempt must not meet the last one in the same directory.
  """

  def __init__(self):
    super().__init__()
    self._guards: dict[int, subprocess.Popen] = {}

  def add(self, process: subprocess.Popen) -> None:
    # Only this process holds the pipe, which closes with it, and then `read` fails.
    self._guards[process.pid] = subprocess.Popen(
      ['/bin/sh', '-c', 'read line || kill -TERM "$0"', str(process.pid)],
      stdin=subprocess.PIPE,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
      start_new_session=True,
    )
    super().add(process)

  def remove(self, process: subprocess.Popen) -> None:
    super().remove(process)
    if process.returncode is None:  # an exception ends the wait, the run lives
      process.terminate()
    self._guards.pop(process.pid).communicate(b'ended\n')


def here(
  trial: Trial,
  runs: pathlib.Path,
  measure: Callable,
  control: Control,
  stopping: execute.Stopping | None = None,
) -> dict[str, Any]:
  """One trial, in the process of an engine's worker; whatever happens to it is in its record."""
  stopping = stopping or Guarded()
  try:
    control.begin(trial)
    if control.told():
      stopping.stop()
    elif wrong := _differs(trial):
      return lost(trial, runs, execute.FAILED, wrong)
    with _following(control, stopping):
      return guarded(trial, runs, measure, None, stopping)
  except Exception as e:  # of one trial; the others go on
    return lost(trial, runs, execute.FAILED, f'{type(e).__name__}: {e}')


def guarded(
  trial: Trial,
  runs: Any,
  measure: Callable,
  cpus: Sequence[int] | None,
  stopping: execute.Stopping,
) -> dict[str, Any]:
  """`execute` behind whatever uses the same run directory; an exception is the trial's failure."""
  try:
    _wait_until_free(execute.folder(runs, trial) / 'run', stopping)
    return execute.execute(trial, runs, measure, cpus, stopping)
  except Exception as e:  # of one trial; the others go on
    return lost(trial, runs, execute.FAILED, f'{type(e).__name__}: {e}')


def lost(trial: Trial, runs: Any, status: str, message: str) -> dict[str, Any]:
  """The record of a trial of which no process could give one."""
  path = execute.folder(runs, trial)
  found = execute.read(path) or {}
  return dict(
    status=status,
    message=message[:500],
    **measures.summary(tracking.read_metrics(path / 'run')),
    **{k: found.get(k, 0) for k in execute.COST},
    versions=found.get('versions', {}),
    value=None,
  )


def _differs(trial: Trial) -> str:
  """Why a result from this machine would not be the trial's, or ''. Hours lie between handing in
  and running, and every machine has an lmjax of its own.
  """
  found = trials_lib.prints(trial.base, trial.changes, trial.before)
  if found == (trial.identity, trial.code):
    return ''
  what = 'config' if found[0] != trial.identity else 'code'
  return (
    f'lmjax on {socket.gethostname()} gives this trial another {what} than where it was handed in; '
    'install the same there, or run again what has changed since'
  )


@contextlib.contextmanager
def _following(control: Control, stopping: execute.Stopping):
  """Passes a stop on to the run within `with`."""
  ended = threading.Event()

  def follow():
    while not ended.wait(LOOK):
      if control.told():
        stopping.stop()
        return

  thread = threading.Thread(target=follow, daemon=True)
  thread.start()
  try:
    yield
  finally:
    ended.set()


def _wait_until_free(path: pathlib.Path, stopping: execute.Stopping) -> None:
  """Waits while an attempt whose worker died saves and ends; ValueError where it does not end."""
  end = time.monotonic() + WAIT
  while path.is_dir() and not stopping.told:
    try:
      with rundir.held(path):
        return
    except ValueError:
      if time.monotonic() > end:
        raise
      time.sleep(LOOK)


# ------------------------------------------------------------------ options


def refuse_unknown(engine: str, unknown: dict[str, Any], cls: type) -> None:
  """Raises ExperimentError for options that are not arguments of the class."""
  for name in unknown:
    known = [k for k in inspect.signature(cls).parameters if k not in ('jobs', 'unknown')]
    raise ExperimentError(f'--engine={engine}: option {name!r}: {", ".join(known)} are known')


def whole(engine: str, name: str, value: Any, what: str, least: int = 1) -> int:
  """A whole number, given as such or as text. `what` names it in the error."""
  try:
    number = int(value)
  except (TypeError, ValueError):
    number = least - 1
  if number < least:
    raise ExperimentError(f'--engine={engine}: {name}={value!r}: {what} are expected')
  return number


def amounts(engine: str, name: str, value: Any) -> dict[str, float]:
  """'TPU:4,disk:0.5' -> {'TPU': 4.0, 'disk': 0.5}; a dictionary is taken as it is."""
  if isinstance(value, dict):
    return dict(value)
  out = {}
  for part in filter(None, (p.strip() for p in str(value).split(','))):
    key, _, amount = part.partition(':')
    try:
      out[key] = float(amount)
    except ValueError:
      out[key] = -1.0
    if not key or not out[key] > 0:
      raise ExperimentError(
        f'--engine={engine}: {name}={value!r}: names with amounts are expected, as in TPU:4'
      )
  return out
