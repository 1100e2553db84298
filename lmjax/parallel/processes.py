"""Several processes of one run: starting them, deciding things once, and stopping at the same step.

With one process every function here is the plain call.
"""

import json
import re
import threading
import time
from typing import Any, Callable

import jax
import numpy as np

from lmjax import exits

_EVERY = 0.2  # seconds from one look at the store to the next; a look takes about 1 ms
_JOIN = 300  # seconds in which all processes must have joined
_joined: list[str] = []
_WAIT_MS = 600_000  # for a process that is still busy with a step


def start(coordinator: str, count: int, index: int) -> None:
  """Joins `count` processes through the address of the first, 'host:port'.

  Raises ValueError where the three do not fit together, exits.Ended where the others do not come.
  """
  host, _, port = coordinator.rpartition(':')
  if not host or not re.fullmatch('[0-9]{1,5}', port) or not 0 < int(port) < 1 << 16:
    raise ValueError(
      f'--coordinator={coordinator!r}: an address is expected, as in 10.0.0.1:1234, with a port '
      'from 1 to 65535'
    )
  if count < 1 or not 0 <= index < count:
    raise ValueError(f'--process={index} of --processes={count}: 0 ... {count - 1} is expected')
  failed: list[Exception] = []

  def join():
    # Its own way to give up ends the process with a stack of C++.
    how = dict(num_processes=count, process_id=index, initialization_timeout=10 * _JOIN)
    try:
      jax.distributed.initialize(coordinator, **how)
    except Exception as e:
      failed.append(e)

  # Not the main thread, which acts on signals only while it does not wait inside a library.
  thread, end = threading.Thread(target=join, daemon=True), time.monotonic() + _JOIN
  thread.start()
  while thread.is_alive() and time.monotonic() < end:
    thread.join(0.1)
  why = (
    f'they did not all come within {_JOIN} s' if thread.is_alive() else ''.join(map(str, failed))
  )
  if why:
    raise exits.Ended(
      exits.RETRY, f'--coordinator={coordinator}: the {count} processes could not join: {why}'
    )
  _joined.append(coordinator)


def leave() -> None:
  """Says goodbye to the other processes, for one that ends without Python's own cleaning up."""
  if _joined:
    jax.distributed.shutdown()


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
  says so through the coordinator's key-value store; each then writes the step that it has begun
  and waits for the others to do so; the largest is the last one for all. Until then it costs a
  request now and then, and never makes the device wait.
  """

  def __init__(self):
    self._target: int | None = None
    self._asked = 0.0
    self._client = _client() if jax.process_count() > 1 else None

  def __call__(self, done: int, wanted: bool) -> bool:
    """Whether the run stops after step `done`, which this process has begun."""
    if self._client is None:
      return wanted
    if self._target is None:
      if wanted:
        self._client.key_value_set('lmjax/stop', 'yes', allow_overwrite=True)
      if wanted or self._told():
        self.publish(done)
        keys = [f'lmjax/begun/{i}' for i in range(jax.process_count())]
        begun = [int(self._client.blocking_key_value_get(k, _WAIT_MS)) for k in keys]
        self._target = max(begun)
    return self._target is not None and done >= self._target

  def publish(self, done: int) -> None:
    """Writes the step that this process has begun; also called once its last one is."""
    if self._client is not None and self._target is None:
      key = f'lmjax/begun/{jax.process_index()}'
      self._client.key_value_set(key, str(done), allow_overwrite=True)

  def _told(self) -> bool:
    if time.monotonic() - self._asked < _EVERY:
      return False
    self._asked = time.monotonic()
    try:
      return bool(self._client.key_value_try_get('lmjax/stop'))
    except jax.errors.JaxRuntimeError:  # not found
      return False


def _client():
  # Not public; `multihost_utils` and orbax use the same. Tests with real processes watch it.
  from jax._src import distributed

  return distributed.global_state.client
