"""Being told to stop: SIGINT, SIGTERM, and SIGHUP where the terminal is gone.

While a step loop holds them back (`with stop.held()`), the first one is a flag that the loop looks
at after each step; a second SIGTERM changes nothing (schedulers repeat it), a second SIGINT
interrupts at once. Anywhere else in a run there is nothing to save and the first one ends the
process, with the exit status for 'start again'. It is remembered too: a library that swallows what
it raises cannot keep the run from stopping after its first step.
"""

import contextlib
import os
import signal
import stat
import sys

from lmjax import exits
from lmjax import progress


def signals() -> list[int]:
  """Those that mean stop: not SIGHUP where the process was told to ignore it, as by nohup."""
  hangup = getattr(signal, 'SIGHUP', None)  # absent on Windows
  heard = hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN
  return [signal.SIGINT, signal.SIGTERM, *([hangup] if heard else [])]


class Stop:
  """Catches the signals within `with`. `signal` is the first one that came, or None."""

  def __init__(self):
    self.signal: int | None = None
    self._held = False

  def __enter__(self):
    self._old = {}
    for s in signals():
      try:
        self._old[s] = signal.signal(s, self._catch)
      except ValueError:  # not the main thread: notebooks and tests
        pass
    self._told, sys.unraisablehook = sys.unraisablehook, self._swallowed
    return self

  def __exit__(self, *_):
    for s, old in self._old.items():
      signal.signal(s, old)
    sys.unraisablehook = self._told

  @contextlib.contextmanager
  def held(self):
    """A stretch of code that looks at `signal` itself."""
    self._held = True
    try:
      yield self
    finally:
      self._held = False

  def _catch(self, number, frame):
    del frame
    again, self.signal = self.signal is not None, self.signal or number
    name = signal.Signals(number).name
    if number == getattr(signal, 'SIGHUP', None):
      _leave_terminal()
    if not self._held:
      raise exits.Ended(exits.RETRY, f'stopped by {name}; there was nothing to save')
    if not again:
      progress.say(f'{name}: stopping after this step; Ctrl-C interrupts at once')
    elif number == signal.SIGINT:
      raise KeyboardInterrupt
    else:
      progress.say(f'{name}: already stopping')

  def _swallowed(self, what):
    """Of what Python drops, such as in a callback of the garbage collector: one line for a stop."""
    if isinstance(what.exc_value, exits.Ended) and self.signal is not None:
      progress.say(f'{signal.Signals(self.signal).name}: stopping after the first step')
    else:
      self._told(what)


def _leave_terminal() -> None:
  """What is said from here on goes nowhere: writing to a terminal that is gone fails."""
  for fd in (1, 2):
    with contextlib.suppress(OSError):
      if stat.S_ISCHR(os.fstat(fd).st_mode):
        os.dup2(os.open(os.devnull, os.O_WRONLY), fd)
