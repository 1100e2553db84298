"""Where trials run. An engine is an object with

  run(trials, runs, measure) -> iterator of (trial, record), in the order in which they end
  stop()                     -> running trials save and end; `run` then ends soon

`runs` is the directory of run directories, which all machines of an engine must share. Each trial
is `execute.execute`, which resumes what was preempted. `jobset` only renders manifests: a cluster
runs them, and `run` with any engine on the same directory collects what they gave.
"""

from typing import Any

from lmjax.experiment.declare import ExperimentError

NAMES = ('local', 'ray', 'slurm')


def make(name: str, jobs: int, options: dict[str, Any]):
  """The engine of a name. Raises ExperimentError for an unknown one, or a package that is not
  there.
  """
  if name not in NAMES:
    raise ExperimentError(f'--engine={name}: {", ".join(NAMES)} are known')
  if jobs < 0:
    raise ExperimentError(f'--jobs={jobs}: trials at a time, or 0 for as many as fit, are expected')
  if name == 'local':
    from lmjax.experiment import local

    if options:
      raise ExperimentError(f'--engine=local takes no --option={next(iter(options))}')
    return local.Local(jobs)
  if 'jobs' in options:
    raise ExperimentError('--option=jobs: give --jobs')
  try:
    if name == 'ray':
      from lmjax.experiment import ray_engine

      return ray_engine.Ray(jobs, **options)
    from lmjax.experiment import slurm_engine

    return slurm_engine.Slurm(jobs, **options)
  except ImportError as e:
    raise ExperimentError(f"--engine={name}: {e}; pip install 'lmjax[{name}]'") from None
