"""Being told to stop: SIGINT and SIGTERM.

While a step loop holds them back (`with stop.held()`), the first one is a flag that the loop looks
at after each step; a second SIGTERM changes nothing (schedulers repeat it), a second SIGINT
interrupts at once. Anywhere else in a run there is nothing to save and the first one ends the
process, with the exit status for 'start again'.
"""

import contextlib
import signal

from lmjax import exits
from lmjax import progress


class Stop:
  """Catches the signals within `with`. `signal` is the first one that came while held, or None."""

  def __init__(self):
    self.signal: int | None = None
    self._held = False

  def __enter__(self):
    self._old = {}
    for s in (signal.SIGINT, signal.SIGTERM):
      try:
        self._old[s] = signal.signal(s, self._catch)
      except ValueError:  # not the main thread: notebooks and tests
        pass
    return self

  def __exit__(self, *_):
    for s, old in self._old.items():
      signal.signal(s, old)

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
    if not self._held:
      raise exits.Ended(exits.RETRY, f'stopped by {name}; there was nothing to save')
    if not again:
      progress.say(f'{name}: stopping after this step; Ctrl-C interrupts at once')
    elif number == signal.SIGINT:
      raise KeyboardInterrupt
    else:
      progress.say(f'{name}: already stopping')
