"""Several processes of one run: joining and leaving, deciding things once, and stopping at the same
step.

With one process every function here is the plain call.
"""

import contextlib
import dataclasses
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from typing import Any, Callable, Mapping

import jax
import numpy as np

from lmjax import exits
from lmjax import progress
from lmjax.parallel import agree as agree_lib
from lmjax.parallel import alive as alive_lib
from lmjax.parallel import store as store_lib
from lmjax.parallel.cluster import Place

# Words of an error that says that a peer, or the way to it, is gone.
_PEERS = re.compile(
  r'gloo|nccl|rccl|coordination ?service|megascale|\bpeer\b|socket closed|broken pipe|'
  r'connection (reset|closed|refused|timed out)|barrier timed out',
  re.IGNORECASE,
)
_GOODBYE = 20.0  # seconds for JAX's own, where all have come to say it
_here: list['Together'] = []
_abandoned: list[Place] = []  # never joined, with a thread that still waits


@dataclasses.dataclass(frozen=True)
class Together:
  """This process among others."""

  index: int
  count: int
  host: str
  store: store_lib.Store
  alive: alive_lib.Alive

  def pause(self) -> None:
    time.sleep(0.05)


@contextlib.contextmanager
def joined(place: Place | None, join_seconds: float, lost_seconds: float):
  """Within, this process is one of `place.count`, and tells the others why it ends if it ends by an
  exception. None, or a count of 1: it is by itself. `leave` must follow.

  Raises exits.Ended, to be tried again, where the others do not come within `join_seconds`, or
  where one is lost and a computation failed of it; the process ends by itself with the same status
  where nothing was heard of another one for `lost_seconds`.
  """
  if place is None or place.count == 1:
    yield
    return
  what = f'{place.count} processes (found by {place.how}; this is {place.index}) at {place.address}'
  wait = f'waiting for {what}, {join_seconds:.0f} s at most'
  try:
    store = store_lib.join(place, join_seconds, 10 * lost_seconds, lambda: progress.say(wait))
  except TimeoutError as e:
    _abandoned.append(place)
    raise exits.Ended(
      exits.RETRY,
      f'the {what} could not join (--join_timeout={join_seconds:.0f}): {e}; start the '
      'same command on every host, or give --distributed=off for a run by itself',
    ) from None
  alive = alive_lib.Alive(store, place.index, place.count, lost_seconds)
  _here.append(Together(place.index, place.count, socket.gethostname(), store, alive))
  alive.start()
  with told():
    yield


@contextlib.contextmanager
def told():
  """The others are told of an exception that leaves this block, so that they end with its reason.
  Where it looks as if another process were lost, it is first found out whether one is.
  """
  try:
    yield
  except BaseException as e:
    if _here and not _here[0].alive.ends:
      e = _explained(e)
      _here[0].alive.ending(*_reason(e))
      raise e  # noqa: B904  (it has its cause)
    raise


def leave(status: int) -> None:
  """The end of the process, after a goodbye to the others. Returns where Python can end it as
  usual; of processes that do not end in good order the libraries would wait for each other.
  """
  if not _here and not _abandoned:
    return
  if _here:
    well = not _here[0].alive.ends
    _here[0].alive.depart(well=well)
    if well and _here.pop().store.leave(_GOODBYE):
      return
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)


def require() -> None:
  """Raises ValueError where JAX sees other processes that this one was not told of."""
  if jax.process_count() > 1 and not _here:
    raise ValueError(
      f'JAX sees {jax.process_count()} processes, which were not joined: start this command on '
      'every host, with --distributed=on or --coordinator=HOST:PORT --processes=N --process=I'
    )


def agree(topic: str, facts: Callable[[], Mapping[str, Any]]) -> None:
  """Raises ValueError on all processes where the facts of one differ, naming it and what differs;
  `topic`: once per run.
  """
  if _here:
    agree_lib.check(_here[0], topic, facts())


def _explained(e: BaseException) -> BaseException:
  chain, at = [], e
  while at is not None and at not in chain:
    chain.append(at)
    at = at.__cause__ or at.__context__
  peers = any(_PEERS.search(str(x)) for x in chain)
  if peers or any(isinstance(x, jax.errors.JaxRuntimeError) for x in chain):
    _here[0].alive.suspect()
  if not peers:
    return e
  found = exits.Ended(
    exits.RETRY,
    f'what the processes computed together failed, though all are there: {_line(e)}',
  )
  found.__cause__ = e
  return found


def _reason(e: BaseException) -> tuple[int, str]:
  if isinstance(e, KeyboardInterrupt):
    return 128 + signal.SIGINT, 'interrupted'
  if isinstance(e, (ValueError, exits.DiskError, exits.Ended)):
    return getattr(e, 'status', exits.USER), _line(e)
  return 1, f'{type(e).__name__}: {_line(e)}'


def _line(e: BaseException) -> str:
  return ' '.join(str(e).split())[:1000]


def from_primary(fn: Callable[[], Any]) -> Any:
  """fn() of process 0, given to all processes (a JSON value); what it raises is raised on all."""
  if jax.process_count() == 1:
    return fn()
  from jax.experimental import multihost_utils

  out = {}
  if jax.process_index() == 0:
    try:
      out = {'value': fn()}
    except (Exception, exits.Ended) as e:  # all must leave the collective, and then fail alike
      out = {'error': str(e), 'status': getattr(e, 'status', None)}
  text = np.frombuffer(json.dumps(out).encode(), np.uint8)
  size = int(multihost_utils.broadcast_one_to_all(np.int32(text.size)))
  text = np.resize(text, size) if jax.process_index() == 0 else np.zeros(size, np.uint8)
  out = json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(text))).decode())
  if out.get('status') is not None:
    raise exits.Ended(out['status'], out['error'])
  if 'error' in out:
    raise ValueError(out['error'])
  return out['value']


def primary_first(fn: Callable[[], Any]) -> Any:
  """fn() on process 0, then on the others, which find what it wrote; a ValueError of 0 ends all."""
  if jax.process_count() == 1:
    return fn()
  out = []
  from_primary(lambda: out.append(fn()))
  return out[0] if out else fn()


class StopVote:
  """Lets all processes stop after the same step, whichever of them were told to.

  A collective needs every process, so that none may stop a step before another. Who is told to stop
  tells all. Each then holds its next step back and writes the last one that it may have begun by
  then, from a thread, since its loop may be waiting for a step of another process; the largest is
  the last one for all. Nothing of this asks anything of the loop or the device before.
  """

  def __init__(self):
    self._turn = threading.Condition()
    self._begun, self._last = None, False  # the step; whether none can follow
    self._held, self._asked, self._target = False, False, None
    self._with = _here[0] if _here else None
    if self._with is not None:
      self._with.alive.follow(self._look)

  def __call__(self, done: int, wanted: bool) -> bool:
    """Whether the run stops after step `done`, which this process has begun."""
    if self._with is None:
      return wanted
    if wanted and not self._asked:
      self._asked = True
      self._with.alive.tell('stop', 'yes')
    with self._turn:
      self._begun = done
      self._turn.wait_for(lambda: not self._held or self._target is not None)
    return self._target is not None and done >= self._target

  def publish(self, done: int) -> None:
    """This process begins no step after `done`."""
    with self._turn:
      self._begun, self._last = done, True

  def _look(self, heard: Mapping[str, str]) -> None:
    """What was heard last; in the thread that hears."""
    if 'stop' not in heard:
      return
    store = self._with.store
    with self._turn:
      if self._begun is None:
        return
      hold, self._held = not self._held, True
      bound = self._begun + (not self._last)
    if hold:
      store.set(f'begun/{self._with.index}', str(bound))
    if self._with.index == 0 and len(bounds := store.under('begun')) == self._with.count:
      self._with.alive.tell('target', str(max(map(int, bounds.values()))))
    if 'target' in heard:
      with self._turn:
        self._target = int(heard['target'])
        self._turn.notify_all()
