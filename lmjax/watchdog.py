"""Says so when a run hangs: which process, after which step, and where each thread stands."""

import faulthandler
import os
import socket
import sys
import threading
import time

from lmjax import exits


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
    self.beat('the run began')

  def beat(self, what: str) -> None:
    """Something moved; `what` is named if nothing does after it."""
    self._last = time.monotonic(), what

  def __enter__(self):
    if self._seconds:
      self._thread.start()
    return self

  def __exit__(self, *_):
    self._closed.set()

  def _watch(self) -> None:
    told = 0
    while not self._closed.wait(min(self._seconds / 4, 10)):
      since, what = self._last
      silent = time.monotonic() - since
      if silent < self._seconds:
        told = 0
      elif silent >= (told + 1) * self._seconds:
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
