"""Trials as Ray tasks: on this machine, or on a cluster of Ray with many.

  python -m lmjax.experiment run experiments/optimizers --engine=ray
  python -m lmjax.experiment run experiments/optimizers --scale=gpu --engine=ray \
    --option=address=auto --runs=/shared/runs
  ... --option=address=ray://head:10001 --option=resources=TPU:4

Without an address, Ray is started in this process and ends with it; `auto` and `ray://` join one
that runs. A trial asks for the cores and GPUs of its scale, and for `resources` where a TPU host or
something else is to be its own.

Shared: a file system with `runs` at the same path everywhere, and the same lmjax, recipes and data.
A machine whose lmjax differs refuses the trial, since its result would stand for other code.

Preemption: a worker or a node that dies gives its trial back, and Ray starts it again elsewhere, at
most `retries` times; there it goes on from the checkpoint in its run directory. A run whose worker
died gets SIGTERM, and its successor waits until it has saved. Ctrl-C lets all running trials save
and end, within seconds, or as long as the shared file system takes to show a new file.
"""

import collections
import contextlib
import pathlib
import signal
import threading
from typing import Any, Callable, Iterator, Sequence

import ray

from lmjax.experiment import execute
from lmjax.experiment import local
from lmjax.experiment import remote
from lmjax.experiment.declare import ExperimentError
from lmjax.experiment.trials import Trial


class Ray:
  """An engine, see `engines`.

  Args:
    jobs: trials at a time; 0: as many as the cluster has room for.
    address: 'local', 'auto' or ray://HOST:PORT.
    resources: custom ones of a trial, as in 'TPU:4'.
    retries: how often a trial may lose its worker.
  """

  def __init__(
    self,
    jobs: int = 0,
    address: str = 'local',
    resources: Any = '',
    retries: Any = 20,
    **unknown,
  ):
    remote.refuse_unknown('ray', unknown, type(self))
    self.jobs, self.address = jobs, address
    self.resources = remote.amounts('ray', 'resources', resources)
    self.retries = remote.whole('ray', 'retries', retries, 'times', least=0)
    self.told, self._control = False, None
    if address == 'local':
      self._connect()  # forks, which is for a process in which JAX has no threads yet

  def run(
    self, trials: Sequence[Trial], runs: Any, measure: Callable
  ) -> Iterator[tuple[Trial, dict]]:
    if not trials:
      return
    runs = pathlib.Path(runs).absolute()
    self._connect()
    self._check_room(trials[0])
    self._control = control = remote.Control(runs)
    waiting, running = collections.deque(trials), {}
    told = False
    try:
      while running or (waiting and not self.told):
        while waiting and not self.told and (not self.jobs or len(running) < self.jobs):
          t = waiting.popleft()
          running[self._submit(t, runs, measure)] = t
        if self.told and not told:
          told = True
          control.stop()  # again: the first one may have come before there was a folder
          for ref in [r for r, t in running.items() if not control.begun(t)]:
            ray.cancel(ref)
        for ref in ray.wait(list(running), timeout=1.0)[0] if running else ():
          t = running.pop(ref)
          yield t, self._record(ref, t, runs)
    finally:
      if running:
        control.stop()
      else:
        control.close()

  def stop(self) -> None:
    # Within a signal handler: no call of Ray's, which may be in the middle of one.
    self.told = True
    if self._control is not None and self._control.path.exists():
      self._control.stop()

  def _connect(self) -> None:
    if ray.is_initialized():
      return
    here = dict(num_cpus=len(local.cores()), include_dashboard=False, log_to_driver=False)
    with _signals_kept():
      try:
        ray.init(
          address=self.address, logging_level='warning', **(here if self.address == 'local' else {})
        )
      except (ConnectionError, ValueError, RuntimeError, AssertionError) as e:
        text = f'{e}'.strip().split('\n')[0]
        raise ExperimentError(f'--engine=ray: address={self.address!r}: {text}') from e

  def _check_room(self, trial: Trial) -> None:
    """Raises ExperimentError for what a Ray of this machine alone can never run."""
    if self.address != 'local':
      return  # a cluster may grow
    have = ray.cluster_resources()
    for name, need in {'CPU': trial.cores, 'GPU': trial.gpus, **self.resources}.items():
      if need > have.get(name, 0):
        raise ExperimentError(
          f'--engine=ray: a trial asks for {need:g} {name}, and this machine has '
          f'{have.get(name, 0):g}; give --option=address of a cluster, or change the scale'
        )

  def _submit(self, trial: Trial, runs: pathlib.Path, measure: Callable):
    task = ray.remote(remote.here).options(
      name=trial.name,
      num_cpus=trial.cores,
      num_gpus=trial.gpus,
      resources=self.resources or None,
      max_retries=self.retries,
    )
    return task.remote(trial, runs, measure, self._control)

  def _record(self, ref, trial: Trial, runs: pathlib.Path) -> dict[str, Any]:
    try:
      return ray.get(ref)
    except ray.exceptions.TaskCancelledError:
      return remote.lost(trial, runs, execute.STOPPED, '')
    except ray.exceptions.RayError as e:
      if self.told:
        return remote.lost(trial, runs, execute.STOPPED, '')
      text = ' '.join(f'{e}'.split())
      dead = isinstance(e, (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError))
      times = f'its worker died {self.retries + 1} times; ' if dead else ''
      return remote.lost(trial, runs, execute.FAILED, f'{times}{type(e).__name__}: {text}')


@contextlib.contextmanager
def _signals_kept():
  """Ray takes SIGTERM for itself; the runner has given it a meaning."""
  mine = threading.current_thread() is threading.main_thread()
  old = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)} if mine else {}
  try:
    yield
  finally:
    for number, handler in old.items():
      signal.signal(number, handler)
