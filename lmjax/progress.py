"""What a person sees while a run goes on: a bar on a terminal, a few plain lines elsewhere.

NO_COLOR is honoured by the library.
"""

import os
import sys
import time
from typing import Iterable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class _Console(Console):
  """Of a run that goes on where nobody listens any more: by itself rich would end the process."""

  def on_broken_pipe(self) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


CONSOLE = _Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str):
  CONSOLE.print(text, markup=False)


def plain(text: str) -> str:
  """What a model wrote, for a terminal: control characters, which could steer it, as escapes."""
  return ''.join(
    c if c.isprintable() or c in '\n\t' else c.encode('unicode_escape').decode() for c in text
  )


def quiet():
  """Says nothing from here on: one process of several speaks for all."""
  CONSOLE.quiet = True


def shown() -> bool:
  """Whether somebody watches: standard error is a terminal that can move its cursor. FORCE_COLOR,
  which notebooks set for what they start, makes none.
  """
  return (
    CONSOLE.file.isatty()
    and CONSOLE.is_terminal
    and not (CONSOLE.is_dumb_terminal or CONSOLE.quiet)
  )


class Count:
  """How far something is: `done` of `total` with a bar and the time left, or done so far where the
  total is not known, and how many a second. Nothing at all without a terminal, or within another
  bar; gone when it ends.
  """

  _on = False  # one at a time

  def __init__(self, what: str, total: float | None = None, unit: str = '', show: bool = True):
    self.done, self._unit, self._start = 0.0, unit, time.monotonic()
    self._bar = None
    if not (show and shown()) or Count._on:
      return
    left = [BarColumn(bar_width=20), TimeRemainingColumn(), TextColumn('left')]
    self._bar = Progress(
      TextColumn('{task.fields[what]}', markup=False),
      *(left if total else [TimeElapsedColumn()]),
      TextColumn('{task.description}', markup=False),  # last: what a narrow terminal cuts
      console=CONSOLE,
      refresh_per_second=4,
      transient=True,
      # Else what is printed would go to the terminal, also where it is piped into a file.
      redirect_stdout=sys.stdout.isatty(),
    )
    what = what if len(what) <= 30 else what[:27] + '...'
    self._task = self._bar.add_task('', total=total, what=plain(what))
    self._total = total

  def __enter__(self):
    if self._bar:
      Count._on = True
      self._bar.start()
    return self

  def __exit__(self, *_):
    if self._bar:
      Count._on = False
      self._bar.stop()

  def add(self, n: float = 1, text: str = ''):
    self.at(self.done + n, text)

  def at(self, done: float, text: str = '', numbers: bool = True):
    """`text` stands in front of the numbers, or in their place."""
    self.done = done
    if self._bar and not numbers:
      self._bar.update(self._task, completed=done, description=text)
    elif self._bar:
      rate = done / max(time.monotonic() - self._start, 1e-9)
      of = f'/{self._total:,.0f}' if self._total else ''
      few = f'{rate:,.0f}' if rate >= 10 else f'{rate:.2g}'
      words = f'{text}  {done:,.0f}{of} {self._unit}  {few}/s'.strip()
      self._bar.update(self._task, completed=done, description=words)


def track(things: Iterable, what: str, total: int | None = None, unit: str = '') -> Iterator:
  """The things, one after another, counted on a terminal."""
  if total is None and hasattr(things, '__len__'):
    total = len(things)
  with Count(what, total, unit) as count:
    for thing in things:
      yield thing
      count.add()


class Bar:
  """A progress bar over steps with free text; without a terminal it prints a line now and then."""

  def __init__(self, total: int, start: int, every_seconds: float = 30.0):
    self._every, self._last, self._total = every_seconds, 0.0, total
    self._bar = None
    if shown():
      self._bar = Progress(
        TextColumn('{task.completed}/{task.total}'),
        BarColumn(bar_width=30),
        TextColumn('{task.description}'),
        TimeElapsedColumn(),
        TextColumn('left'),
        TimeRemainingColumn(),
        console=CONSOLE,
        refresh_per_second=4,
        redirect_stdout=sys.stdout.isatty(),
      )
      self._task = self._bar.add_task('compiling', total=total, completed=start)

  def __enter__(self):
    if self._bar:
      Count._on = True  # what counts within a run says nothing of its own
      self._bar.start()
    return self

  def __exit__(self, *_):
    if self._bar:
      Count._on = False
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
