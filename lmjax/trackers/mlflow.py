"""MLflow, in a SQLite file of the run directory by default; no server and no account.

`mlflow ui --backend-store-uri sqlite:///<run directory>/mlflow.db` shows it. With one `uri` for
several runs, such as 'sqlite:////data/mlflow.db' or that of a server, they are compared there.
Samples are text files among the run's artifacts. A resume goes on in the same MLflow run. The
settings of the config are its parameters, cut to the 6000 characters that MLflow keeps. MLflow's
own reports of its use are switched off unless MLFLOW_DISABLE_TELEMETRY says otherwise.
"""

import dataclasses
import os
import re
from typing import Any

from lmjax.registry import register

LONGEST = 6000  # characters of a parameter
AT_ONCE = 100  # parameters of a request
_REFUSED = re.compile(r'[^\w\-. :/]')  # in names


@register('tracker', package='mlflow')
@dataclasses.dataclass(frozen=True)
class Mlflow:
  """MLflow; `uri` '' = mlflow.db in the run directory, `title` '' = that of the run directory."""

  uri: str = ''
  experiment: str = 'lmjax'
  title: str = ''

  def suits(self, workdir: Any) -> None:
    if '://' in str(workdir) and not self.uri:
      raise ValueError(
        f"uri='': {workdir} is in an object store, where SQLite cannot write; the address of an "
        'MLflow store is expected'
      )

  def open(self, workdir: Any, config: dict[str, Any], run: str | None) -> 'Session':
    os.environ.setdefault('MLFLOW_DISABLE_TELEMETRY', 'true')
    from mlflow import MlflowClient
    from mlflow.entities import Param

    local = None if self.uri else workdir.absolute()
    client = MlflowClient(self.uri or f'sqlite:///{local}/mlflow.db')
    if run is not None:
      client.update_run(run, status='RUNNING')
      return Session(client, run)
    found = client.get_experiment_by_name(self.experiment)
    where = None if local is None else (local / 'mlflow').as_uri()
    experiment = (
      found.experiment_id
      if found is not None
      else client.create_experiment(self.experiment, artifact_location=where)
    )
    run = client.create_run(experiment, run_name=self.title or workdir.name).info.run_id
    params = [Param(_name(k), str(v)[:LONGEST]) for k, v in config.items()]
    for i in range(0, len(params), AT_ONCE):
      client.log_batch(run, params=params[i : i + AT_ONCE])
    return Session(client, run)


class Session:
  """One run of MLflow, by its id alone: MLflow's notion of an active run is per thread."""

  def __init__(self, client: Any, run: str):
    self._client, self.id = client, run

  def log(self, step: int, time: float, numbers: dict[str, float], texts: dict[str, str]) -> None:
    from mlflow.entities import Metric

    at = int(1000 * time)
    if numbers:
      metrics = [Metric(_name(k), v, at, step) for k, v in numbers.items()]
      self._client.log_batch(self.id, metrics=metrics)
    for k, text in texts.items():
      self._client.log_text(self.id, text, f'{_name(k)}/{step:08d}.txt')

  def close(self) -> None:
    self._client.set_terminated(self.id)


def _name(text: str) -> str:
  """A name that MLflow takes."""
  return _REFUSED.sub('_', text)[:250]
