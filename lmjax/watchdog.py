"""Says so when a run hangs: which process, after which step, and where each thread stands."""

import faulthandler
import os
import socket
import sys
import threading
import time

from lmjax import exits


COMPILING = (
  1800.0  # seconds that a step may take which compiles, or makes a sample, whatever is set
)


class Watchdog:
  """Speaks when `beat` was not called for some seconds, and again after each such time.

  Args:
    seconds: of silence that count as a hang; 0 turns it off.
    end: then end the process, with the exit status for 'start again'. A collective that waits for a
      lost process cannot be interrupted in any other way.
    process: index of this process.
  """

  def __init__(self, seconds: float, *, end: bool = False, process: int = 0):
    self._seconds, self._end, self._process = seconds, end, process
    self._closed = threading.Event()
    self._thread = threading.Thread(target=self._watch, name='watchdog', daemon=True)
    self.beat('the watchdog was made')

  def beat(self, what: str, *, slow: bool = False) -> None:
    """Something moved; `what` is named if nothing does after it. slow: what follows may take longer
    than is set.
    """
    self._last = time.monotonic(), what, max(self._seconds, COMPILING if slow else 0)

  def __enter__(self):
    self.beat('training began')
    if self._seconds:
      self._thread.start()
    return self

  def __exit__(self, *_):
    self._closed.set()

  def _watch(self) -> None:
    told = 0
    while not self._closed.wait(min(self._seconds / 4, 10)):
      since, what, allowed = self._last
      silent = time.monotonic() - since
      if silent < allowed:
        told = 0
      elif silent >= allowed + told * self._seconds:
        told += 1
        self._tell(silent, what)

  def _tell(self, silent: float, what: str) -> None:
    _print(
      f'watchdog: process {self._process} (pid {os.getpid()} on {socket.gethostname()}) has not '
      f'moved for {silent:.0f} s; the last it did: {what}. Threads:'
    )
    faulthandler.dump_traceback(sys.__stderr__, all_threads=True)
    if self._end:
      _print(f'watchdog: ending the process with status {exits.RETRY}')
      os._exit(exits.RETRY)  # the main thread cannot be woken


def _print(text: str) -> None:
  """Past the progress bar, and also where a process is told to be quiet."""
  print(text, file=sys.__stderr__, flush=True)
