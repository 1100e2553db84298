"""Weights & Biases, offline by default: records lie in `<run directory>/wandb` and nothing is sent.

`wandb sync <run directory>/wandb/offline-run-*` uploads them later. With mode='online' it needs an
account (WANDB_API_KEY, or `wandb login`). A resume goes on under the same id; since W&B takes
nothing back, steps that a killed run had logged twice stand there twice. The x axis is `step`.
"""

import dataclasses
import pathlib
from typing import Any, Literal

from lmjax.registry import register

LOGIN_SECONDS = 30  # then it is an error, instead of a question at a terminal


@register('tracker', package='wandb')
@dataclasses.dataclass(frozen=True)
class Wandb:
  """Weights & Biases; `dir`, `title` '' = the run directory and its name."""

  project: str = 'lmjax'
  mode: Literal['offline', 'online'] = 'offline'
  entity: str = ''
  title: str = ''
  dir: str = ''

  def suits(self, workdir: Any) -> None:
    if '://' in str(workdir) and not self.dir:
      raise ValueError(
        f"dir='': {workdir} is in an object store, where wandb cannot write; a local folder is "
        'expected'
      )

  def open(self, workdir: Any, config: dict[str, Any], run: str | None) -> 'Session':
    import wandb

    folder = pathlib.Path(self.dir or str(workdir)).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    settings = wandb.Settings(
      silent=True, console='off', disable_git=True, login_timeout=LOGIN_SECONDS
    )
    return Session(
      wandb.init(
        project=self.project,
        entity=self.entity or None,
        name=self.title or workdir.name,
        id=run,
        resume='allow' if run and self.mode == 'online' else None,
        mode=self.mode,
        dir=str(folder),
        config=config,
        settings=settings,
      )
    )


class Session:
  """One run of W&B."""

  def __init__(self, run: Any):
    self._run, self.id = run, run.id
    # Not its own counter, which refuses a step below the last one, as a resume logs it.
    run.define_metric('*', step_metric='step')

  def log(self, step: int, time: float, numbers: dict[str, float], texts: dict[str, str]) -> None:
    self._run.log({'step': step, **numbers, **texts})

  def close(self) -> None:
    self._run.finish()
