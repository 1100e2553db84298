"""Trials as Slurm jobs, through submitit: one array a stage.

  python -m lmjax.experiment run experiments/optimizers --scale=gpu --engine=slurm --jobs=16 \
    --runs=/shared/runs --option=partition=gpu --option=time=240 --option=mem_gb=64
  ... --engine=slurm --option=cluster=local        the same machinery on this machine

Each trial asks for the cores and GPUs of its scale on one node; `--jobs` limits how many run at a
time. The command waits for its jobs; started again after it was killed, it hands in what has no
result yet, so cancel its old jobs before (`scancel --name=lmjax`).

Shared: a file system with `runs` at the same path on all nodes, and the same lmjax, recipes and
data. A node whose lmjax differs refuses the trial, since its result would stand for other code.

Preemption: `grace` seconds before the time limit, or when it is preempted, the run saves, and the
job is put back into the queue, to go on from its checkpoint in its run directory. A job that
disappears with its node is put back by Slurm, or handed in again from here, up to five times in a
row without a step made. Ctrl-C lets running trials save and end, and cancels those in the queue.
"""

import collections
import os
import pathlib
import signal
import threading
import time
from typing import Any, Callable, Iterator, Sequence

import submitit

from lmjax.experiment import execute
from lmjax.experiment import local
from lmjax.experiment import remote
from lmjax.experiment.declare import ExperimentError
from lmjax.experiment.trials import Trial

LOOK = 1.0  # seconds from one look at the jobs to the next; submitit asks Slurm itself less often


class Run(submitit.helpers.Checkpointable):
  """One trial as a job's function; gives its record."""

  def __init__(self, trial: Trial, runs: pathlib.Path, measure: Callable, control: remote.Control):
    self.given = trial, runs, measure, control

  def __call__(self) -> dict[str, Any]:
    # The run has a thread of its own, since submitit calls `checkpoint` within a signal handler,
    # and that can only wait for what goes on elsewhere.
    self.stopping, self.ended = remote.Guarded(), []
    threading.Thread(target=self._run, daemon=True).start()
    return self._wait()

  def checkpoint(self) -> submitit.helpers.DelayedSubmission:
    """The run saves and ends; the job's next start goes on with it."""
    self.stopping.stop()
    self._wait()
    return submitit.helpers.DelayedSubmission(Run(*self.given))

  def _run(self) -> None:
    # Slurm may signal every process of a job; the run would die of the one that is submitit's.
    number = f'SIG{os.environ.get("SUBMITIT_PREEMPT_SIGNAL", "USR2")}'
    signal.pthread_sigmask(signal.SIG_BLOCK, [getattr(signal, number)])
    self.ended.append(remote.here(*self.given, self.stopping))

  def _wait(self) -> dict[str, Any]:
    while not self.ended:  # locks of `threading` are not for signal handlers
      time.sleep(0.1)
    return self.ended[0]


class Slurm:
  """An engine, see `engines`.

  Args:
    jobs: trials at a time; 0: as many as Slurm, or this machine, has room for.
    cluster: 'slurm', or another executor of submitit; 'local' runs jobs here.
    folder: submitit's scripts and logs; by default `submitit` below `runs`.
    time: minutes after which a job is put back into the queue.
    grace: seconds before that at which it saves.
    requeues: how often the time limit may do so.
    mem_gb: of a trial; 0: what the partition gives.
    partition, account, qos, constraint: as of sbatch.
    setup: a line of shell before the command, such as 'module load cuda'.
  """

  def __init__(
    self,
    jobs: int = 0,
    cluster: str = 'slurm',
    folder: str = '',
    time: Any = 1440,
    grace: Any = 120,
    requeues: Any = 1000,
    mem_gb: Any = 0,
    partition: str = '',
    account: str = '',
    qos: str = '',
    constraint: str = '',
    setup: str = '',
    **unknown,
  ):
    remote.refuse_unknown('slurm', unknown, type(self))
    self.jobs, self.cluster, self.folder = jobs, cluster, folder
    self.time = remote.whole('slurm', 'time', time, 'minutes')
    self.grace = remote.whole('slurm', 'grace', grace, 'seconds')
    if self.grace >= 60 * self.time:
      raise ExperimentError(
        f'--engine=slurm: grace={grace!r}: fewer seconds than the {self.time} minutes of time= are '
        'expected'
      )
    self.requeues = remote.whole('slurm', 'requeues', requeues, 'times', least=0)
    self.mem_gb = remote.whole('slurm', 'mem_gb', mem_gb, 'gigabytes', least=0)
    self.sbatch = dict(partition=partition, account=account, qos=qos, constraint=constraint)
    self.setup = setup
    self.told, self._control = False, None

  def run(
    self, trials: Sequence[Trial], runs: Any, measure: Callable
  ) -> Iterator[tuple[Trial, dict]]:
    if not trials:
      return
    runs = pathlib.Path(runs).absolute()
    executor = self._executor(trials[0], runs)
    self._control = control = remote.Control(runs)
    waiting, running, idle = collections.deque(trials), {}, collections.Counter()
    told = False
    try:
      while running or (waiting and not self.told):
        if not self.told:
          running |= self._submit(executor, waiting, len(running), runs, measure)
        if self.told and not told:
          told = True
          control.stop()  # again: the first one may have come before there was a folder
          for job in [j for j, (t, _) in running.items() if not control.begun(t)]:
            job.cancel(check=False)  # whether or not it begins meanwhile
            del running[job]
        for job in [j for j in running if j.done()]:
          t, before = running.pop(job)
          record = self._record(job, t, runs)
          if record is None:
            key = t.identity, t.code
            idle[key] = idle[key] + 1 if self._step(t, runs) == before else 0
            if idle[key] < execute.ATTEMPTS:
              waiting.append(t)
              continue
            text = f'its job ended {idle[key]} times without a step; see {job.paths.stderr}'
            record = remote.lost(t, runs, execute.FAILED, text)
          yield t, record
        time.sleep(LOOK)
    finally:
      if running:
        control.stop()
      else:
        control.close()

  def stop(self) -> None:
    self.told = True
    if self._control is not None and self._control.path.exists():
      self._control.stop()

  def _executor(self, trial: Trial, runs: pathlib.Path) -> submitit.AutoExecutor:
    folder = self.folder or runs / 'submitit'
    try:
      executor = submitit.AutoExecutor(
        folder,
        cluster=self.cluster,
        slurm_max_num_timeout=self.requeues,
        local_max_num_timeout=self.requeues,
      )
    except (ValueError, RuntimeError) as e:
      raise ExperimentError(f'--engine=slurm: cluster={self.cluster!r}: {e}') from e
    executor.update_parameters(
      name='lmjax',
      nodes=1,
      tasks_per_node=1,
      timeout_min=self.time,
      cpus_per_task=trial.cores,
      gpus_per_node=trial.gpus or None,
      mem_gb=self.mem_gb or None,
      slurm_array_parallelism=self.jobs or None,
      slurm_signal_delay_s=self.grace,
      slurm_setup=[self.setup] if self.setup else None,
      slurm_additional_parameters={'requeue': True},
      **{f'slurm_{k}': v or None for k, v in self.sbatch.items()},
    )
    return executor

  def _submit(self, executor, waiting, running: int, runs, measure) -> dict:
    """Hands in what there is room for, and gives job -> (trial, its newest step)."""
    room = len(waiting)
    if waiting and self.cluster != 'slurm':  # whose array limits how many run
      cores = max(1, len(local.cores()) // max(1, waiting[0].cores))
      limit = self.jobs or (1 if waiting[0].gpus else cores)
      room = min(room, limit - running)
    if room < 1:
      return {}
    chosen = [waiting.popleft() for _ in range(room)]
    with executor.batch():
      jobs = [executor.submit(Run(t, runs, measure, self._control)) for t in chosen]
    return {job: (t, self._step(t, runs)) for job, t in zip(jobs, chosen)}

  def _record(self, job, trial: Trial, runs: pathlib.Path) -> dict[str, Any] | None:
    """The record of a job that ended, or None where it disappeared and is to be tried again."""
    error = job.exception()
    if error is None:
      return job.result()
    if self.told:
      return remote.lost(trial, runs, execute.STOPPED, '')
    if 'CANCELLED' in job.state:
      return remote.lost(trial, runs, execute.FAILED, f'job {job.job_id} was cancelled')
    if isinstance(error, submitit.core.utils.UncompletedJobError):
      return None
    words = [x for x in f'{error}'.split('\n') if x.strip()]
    return remote.lost(
      trial, runs, execute.FAILED, next((x for x in words if 'Error:' in x), words[0])
    )

  def _step(self, trial: Trial, runs: pathlib.Path) -> int:
    return execute.last_step(execute.folder(runs, trial))
