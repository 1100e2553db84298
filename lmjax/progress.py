"""What a person sees while a run goes on: a bar on a terminal, a few plain lines elsewhere."""

import os
import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class _Console(Console):
  """Of a run that goes on where nobody listens any more: by itself rich would end the process."""

  def on_broken_pipe(self) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


CONSOLE = _Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str):
  CONSOLE.print(text, markup=False)


def quiet():
  """Says nothing from here on: one process of several speaks for all."""
  CONSOLE.quiet = True


class Bar:
  """A progress bar over steps with free text; without a terminal it prints a line now and then."""

  def __init__(self, total: int, start: int, every_seconds: float = 30.0):
    self._every, self._last, self._total = every_seconds, 0.0, total
    self._bar = None
    if CONSOLE.is_terminal:
      self._bar = Progress(
        TextColumn('{task.completed}/{task.total}'),
        BarColumn(bar_width=30),
        TextColumn('{task.description}'),
        TimeElapsedColumn(),
        TextColumn('left'),
        TimeRemainingColumn(),
        console=CONSOLE,
        refresh_per_second=4,
      )
      self._task = self._bar.add_task('compiling', total=total, completed=start)

  def __enter__(self):
    if self._bar:
      self._bar.start()
    return self

  def __exit__(self, *_):
    if self._bar:
      self._bar.stop()

  def update(self, step: int, text: str, left: float | None = None):
    """`left`: seconds to go, for the plain lines."""
    if self._bar:
      self._bar.update(self._task, completed=step, description=text)
    elif time.monotonic() - self._last >= self._every or step == self._total:
      self._last = time.monotonic()
      say(
        f'step {step}/{self._total}  {text}'
        + ('' if left is None else f'  {left / 60:.1f} min left')
      )
      sys.stderr.flush()

  def say(self, text: str):
    (self._bar.console if self._bar else CONSOLE).print(text, markup=False)
