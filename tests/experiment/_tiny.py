"""Trials of a few seconds, and what is needed to kill them in the middle."""

import os
import pathlib
import re
import signal
import subprocess
import threading
import time

from lmjax.experiment import Arm
from lmjax.experiment import Experiment
from lmjax.experiment import Faster
from lmjax.experiment import Scale
from lmjax.experiment import execute
from lmjax.experiment import measures
from lmjax.experiment import trials

CHANGES = {
  'model.width': 16,
  'model.depth': 1,
  'model.unroll': 1,
  'model.mixer.head_dim': 8,
  'data.length': 16,
  'batch_tokens': 128,
  'eval.every': 0,
  'eval.batches': 4,
  'checkpoint_every': 0,
  'sample.tokens': 0,
  'sample.every': 0,
  'tensorboard': False,
  'report': False,
  'log_every': 1,
}
ONE_DEVICE = '--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0'


def experiment(**settings) -> Experiment:
  """AdamW and Lion at 10 and 20 steps."""
  rates = {'peak_lr': (1e-3, 1e-2)}
  given = dict(
    title='Tiny',
    source='none',
    base='quickstart',
    fields=('optim*', 'peak_lr'),
    baseline=Arm('adamw', {'optim': 'clip() | adam(b2=0.99) | decay(rate=0.1)'}, rates),
    treatments=(Arm('lion', {'optim': 'clip() | lion() | decay(rate=0.1)'}, rates, Faster(1.5)),),
    changes=CHANGES,
    scales={'cpu': Scale((10, 20))},
    seeds=(1, 2),
  )
  return Experiment(**given | settings)


def trial(steps: int = 10, seed: int = 1, **changes) -> trials.Trial:
  """One of the baseline's; `__` in a change stands for a dot."""
  named = {k.replace('__', '.'): v for k, v in changes.items()}
  e = experiment(changes=CHANGES | named)
  return trials.trial(e, 'cpu', e.baseline, {'peak_lr': 1e-2}, seed, steps)


def until(holds, what: str, seconds: float = 120.0):
  """Waits for holds() and gives what it gave."""
  end = time.monotonic() + seconds
  while not (found := holds()):
    assert time.monotonic() < end, f'waited {seconds} s for {what}'
    time.sleep(0.02)
  return found


def until_step(runs, t: trials.Trial, step: int) -> int:
  """Waits until a run has made a step, and gives its process."""
  path = execute.folder(runs, t)
  until(lambda: execute.last_step(path) >= step, f'step {step} in {path}')
  return int(re.match(r'process (\d+)', (path / 'run' / '.lock').read_text())[1])


def parent(pid: int) -> int:
  """The worker of a run's process."""
  return int(subprocess.check_output(['ps', '-o', 'ppid=', '-p', str(pid)]))


def kill_worker(runs, t: trials.Trial, step: int) -> tuple[int, int]:
  """SIGKILL for the worker once its run has made a step: (run, worker)."""
  pid = until_step(runs, t, step)
  worker = parent(pid)
  assert worker not in (1, os.getpid())
  os.kill(worker, signal.SIGKILL)
  return pid, worker


def log(runs, t: trials.Trial) -> str:
  return pathlib.Path(execute.folder(runs, t) / 'log.txt').read_text('utf-8')


def resumed(runs, t: trials.Trial) -> list[int]:
  """The steps at which its later attempts began."""
  return [int(x) for x in re.findall(r'resumed at step (\d+)', log(runs, t))]


class Collected(threading.Thread):
  """What an engine gives, while the test does something to it."""

  def __init__(self, engine, trials, runs, measure=measures.final_loss):
    super().__init__(daemon=True)
    self.given, self.records, self.error = (engine, trials, runs, measure), {}, None

  def run(self):
    engine, *rest = self.given
    try:
      for t, record in engine.run(*rest):
        self.records[t.seed] = record
    except BaseException as e:
      self.error = e

  def end(self, seconds: float = 240.0) -> dict:
    """Records by seed."""
    self.join(seconds)
    assert not self.is_alive(), f'no end after {seconds} s: {self.records}'
    if self.error is not None:
      raise self.error
    return self.records


def collect(engine, trials, runs, **how) -> Collected:
  thread = Collected(engine, trials, runs, **how)
  thread.start()
  return thread


def ended(pid: int) -> bool:
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return True
  stat = subprocess.run(['ps', '-o', 'stat=', '-p', str(pid)], capture_output=True, text=True)
  return stat.stdout.strip()[:1] in ('', 'Z')
