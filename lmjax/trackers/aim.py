"""Aim, in a repository of the run directory by default; no server and no account.

`aim up --repo <run directory>` shows it. With one `repo` for several runs they are compared there.
A resume goes on in the same Aim run. Aim shows no infinities and NaN: those lines are left to
metrics.jsonl.
"""

import dataclasses
import math
import pathlib
from typing import Any

from lmjax.registry import register


@register('tracker', package='aim')
@dataclasses.dataclass(frozen=True)
class Aim:
  """Aim; `repo` '' = the run directory, `title` '' = its name."""

  repo: str = ''
  experiment: str = 'lmjax'
  title: str = ''

  def suits(self, workdir: Any) -> None:
    if '://' in str(workdir) and not self.repo:
      raise ValueError(
        f"repo='': {workdir} is in an object store, where Aim cannot write; a local folder, or the "
        'aim:// address of a server, is expected'
      )

  def open(self, workdir: Any, config: dict[str, Any], run: str | None) -> 'Session':
    import aim

    repo = self.repo or str(workdir)
    if '://' not in repo:
      folder = pathlib.Path(repo).expanduser().absolute()
      folder.mkdir(parents=True, exist_ok=True)
      repo = aim.Repo.from_path(str(folder), init=True)
    made = aim.Run(
      run_hash=run,
      repo=repo,
      experiment=self.experiment,
      system_tracking_interval=None,
      log_system_params=False,
      capture_terminal_logs=False,
    )
    made.name = self.title or workdir.name
    made['config'] = config
    return Session(made)


class Session:
  """One run of Aim."""

  def __init__(self, run: Any):
    self._run, self.id = run, run.hash

  def log(self, step: int, time: float, numbers: dict[str, float], texts: dict[str, str]) -> None:
    import aim

    for name, value in numbers.items():
      if math.isfinite(value):
        self._run.track(value, name=name, step=step)
    for name, text in texts.items():
      self._run.track(aim.Text(text), name=name, step=step)

  def close(self) -> None:
    self._run.close()
