"""Who of several processes is still there, and why one of them ended.

Each process writes a number into the coordinator's store every second or two, from a thread of its
own. Process 0 looks at all numbers, the others at that of process 0, so that a thousand processes
cost it a thousand small requests. A number that stands still for `seconds` means a lost process:
killed, frozen, or cut off. Whoever ends for a reason of its own writes that reason, and the others
end with it, with the same exit status.

A collective that waits for a lost process cannot be interrupted, so that the thread ends the whole
process, after one sentence. A collective may also fail at once where a peer is gone: that error is
a symptom (`suspect`), and within a few seconds it is known who is silent, or that nobody is.

Time counts only while this process itself runs: one that was frozen together with the others, or
that held the interpreter for long, takes nobody for lost when it goes on.
"""

import json
import os
import socket
import sys
import threading
import time
from typing import Any, Callable, Mapping

from lmjax import exits

_GRACE = 2.0  # seconds for a process to end by itself, for the reason that another one gave
_CLEANING = 60.0  # seconds from the reason of one's own to the end of one's cleaning up
_GONE = 'gone'  # in the place of a number: ended
_DONE = 'done'  # ended in good order


class Alive:
  """The view of one process.

  Args:
    seconds: of silence after which a process is lost.
    hosts: names by process, as far as they are known.
  """

  def __init__(self, store, index: int, count: int, seconds: float):
    self._store, self._index, self._count, self.seconds = store, index, count, seconds
    self.period = min(1 + count / 500, seconds / 10)
    self._short = min(seconds, max(5 * self.period, 6.0))  # where something failed already
    self.hosts: dict[int, str] = {index: socket.gethostname()}
    self._heard: dict[str, str] = {}
    watched = range(1, count) if index == 0 else [0]
    self._seen: dict[int, tuple[str, float]] = {i: ('', 0.0) for i in watched}
    self._now, self._tick = 0.0, time.monotonic()  # seconds in which this process ran
    self._closed, self._lock = threading.Event(), threading.Lock()
    self._writing, self._departed = threading.Lock(), False
    self._own: tuple[int, float] | None = None  # status and end of one's own ending
    self._symptom = False
    self._followers: list[Callable[[Mapping[str, str]], None]] = []

  def start(self) -> None:
    for fn in (self._speak, self._watch):
      threading.Thread(target=fn, name=f'alive{fn.__name__}', daemon=True).start()

  @property
  def ends(self) -> bool:
    """Whether this process has said that it ends, for a reason of its own."""
    return self._own is not None

  def follow(self, fn: Callable[[Mapping[str, str]], None]) -> None:
    """fn(all that was told) is called every second or two, in a thread."""
    self._followers.append(fn)

  def tell(self, key: str, value: str) -> None:
    """Tells all processes something."""
    self._store.set(f'tell/{key}', value)

  # ---------------------------------------------------------------- ending

  def ending(self, status: int, why: str) -> None:
    """This process ends for a reason of its own, which the others are told, if none was first."""
    with self._lock:
      if self._own is None:
        self._own = status, self._now + _CLEANING
        note = dict(process=self._index, host=socket.gethostname(), status=status, why=why)
        self._bounded(lambda: self._store.first('tell/end', json.dumps(note)))

  def suspect(self) -> None:
    """Something failed as it does where another process is lost. Returns where none is, after some
    seconds; else this process ends in them.
    """
    self._symptom = True
    self._bounded(lambda: self.tell('symptom', str(self._index)))
    time.sleep(self._short + 5 * self.period)

  def depart(self, *, well: bool) -> None:
    """Says goodbye, after which silence means nothing. Process 0 stays until all others have done
    so: well, for as long as they live, else for some seconds.
    """
    self._bounded(lambda: self._sign(_DONE if well else _GONE, last=True))
    end = time.monotonic() + _GRACE + 4 * self.period
    while (well or time.monotonic() < end) and not self._store.broken:
      if _quietly(self._others_left if self._index == 0 else lambda: not well or self._dismissed()):
        break
      time.sleep(0.05)
    self._closed.set()

  def _others_left(self) -> bool:
    marks = [v for k, v in self._store.under('alive').items() if k != '0']
    if sum(v in (_DONE, _GONE) for v in marks) < self._count - 1:
      return False
    self.tell('close', 'yes')
    return True

  def _dismissed(self) -> bool:
    return 'close' in self._store.under('tell')

  def _sign(self, mark: str, *, last: bool = False) -> None:
    with self._writing:  # nothing is written over the last one
      if not self._departed:
        self._departed = last
        self._store.set(f'alive/{self._index}', mark)

  def _bounded(self, fn) -> None:
    """A request that may never be answered."""
    thread = threading.Thread(target=_quietly, args=(fn,), daemon=True)
    thread.start()
    thread.join(2 * self.period + 1)

  # ---------------------------------------------------------------- threads

  def _speak(self) -> None:
    n = 0
    while not self._closed.wait(self.period if n else 0):
      n += 1
      _quietly(lambda: self._exchange(str(n)))  # noqa: B023  (called at once)

  def _exchange(self, mark: str) -> None:
    self._sign(mark)
    if self._index == 0:
      self.tell('beat', mark)
      for i, value in self._store.under('alive').items():
        self._note(int(i), value)
    heard = self._store.under('tell')
    if self._index and 'beat' in heard:
      self._note(0, heard['beat'])
    self._heard = heard
    for fn in self._followers:
      fn(heard)

  def _note(self, process: int, value: str) -> None:
    if process in self._seen and self._seen[process][0] != value:
      self._seen[process] = value, self._now

  def _watch(self) -> None:
    since: float | None = None
    while not self._closed.wait(self.period / 2):
      now = time.monotonic()
      self._now += min(now - self._tick, 3 * self.period)
      self._tick = now
      if self._own is not None:
        if self._now > self._own[1]:  # its cleaning up waits for the others
          self._end(self._own[0], '')
        continue
      found = self._verdict()
      if found is None:
        since = None
        continue
      since = self._now if since is None else since
      if self._now - since >= found[2]:
        if self._index == 0 and found[0] == exits.RETRY:
          self._bounded(lambda: self.tell('lost', found[1]))  # noqa: B023  (called at once)
        self._end(*found[:2])

  def _verdict(self) -> tuple[int, str, float] | None:
    """(exit status, why, seconds that it may wait) where this process is to end."""
    heard = self._heard
    if 'end' in heard:
      note = json.loads(heard['end'])
      if note['process'] != self._index:
        why = f'process {note["process"]} ({note["host"]}) ended: {note["why"]}'
        return note['status'], why, _GRACE
    if 'lost' in heard:
      return exits.RETRY, heard['lost'], 0.0
    if self._store.broken:
      why = f'{self._name(0)} was lost: it closed its connection without a word'
      return exits.RETRY, why + self._again(), _GRACE
    gone = [i for i, (value, _) in self._seen.items() if value == _GONE]
    if gone:
      why = f'{self._name(gone[0])} has ended, and gave no reason or took this process for lost'
      return exits.RETRY, why + self._again(), _GRACE + 2 * self.period
    return self._silent()

  def _silent(self) -> tuple[int, str, float] | None:
    failed = self._symptom or 'symptom' in self._heard
    allowed = (self._short if failed else self.seconds) + (2 * self.period if self._index else 0)
    silent = {i: self._now - at for i, (v, at) in self._seen.items() if v != _DONE}
    lost = sorted(i for i, seconds in silent.items() if seconds > allowed)
    if not lost:
      return None
    names = ', '.join(self._name(i) for i in lost[:4])
    more = f' and {len(lost) - 4} more' if len(lost) > 4 else ''
    why = f'{names}{more} was lost: nothing was heard of it for {silent[lost[0]]:.0f} s'
    why += (' and what was computed together failed' if failed else '') + self._again()
    return exits.RETRY, why, 0.0

  def _again(self) -> str:
    return '; this process ends, since nothing can go on without it: start all of them again'

  def _name(self, process: int) -> str:
    host = f' ({self.hosts[process]})' if process in self.hosts else ''
    return f'process {process}{host}'

  def _end(self, status: int, why: str) -> None:
    """Ends this process from a thread: the main one may wait for ever, and cannot be woken."""
    with self._lock:
      if self._closed.is_set() or why and self._own is not None:
        return  # it ends by itself, just now
      if why:
        print(f'lmjax: {why}', file=sys.__stderr__, flush=True)
      _quietly(lambda: self.depart(well=False))
      os._exit(status)


def _quietly(fn) -> Any:
  """fn(), of a store that may be gone."""
  try:
    return fn()
  except (RuntimeError, ValueError):  # JAX's errors differ by version
    return None
