"""The coordinator's key-value store, and joining it. The one place that knows what JAX does not
make public of it; tests with real processes watch over that.

The store lives in process 0. JAX's client ends its process, with a stack of C++, in the moment in
which its connection to process 0 breaks, so that nobody could say why. All but process 0 therefore
connect to a `Relay` of their own.
"""

import errno
import os
import socket
import threading
import time
from typing import Callable

import jax

_KEY = 'lmjax/'


class Relay:
  """Carries a client's bytes to the coordinator and back. Where the coordinator hangs up, `broken`
  is set and the client never hears of it.
  """

  def __init__(self, host: str, port: int):
    self._to = host, port
    self.reached, self.broken = threading.Event(), threading.Event()
    self._closed = threading.Event()
    self._kept: list[socket.socket] = []  # a socket that nobody holds is closed
    self._server = socket.create_server(('127.0.0.1', 0))
    self.address = f'127.0.0.1:{self._server.getsockname()[1]}'
    _thread(self._accept)

  def close(self) -> None:
    """Ends waiting for a coordinator that is not there, and no longer minds its end."""
    self._closed.set()

  def _accept(self) -> None:
    while True:
      client, _ = self._server.accept()
      self._kept.append(client)
      _thread(self._carry, client)

  def _carry(self, client: socket.socket) -> None:
    while (there := self._connect()) is None:
      if self._closed.wait(0.5):
        return
    self._kept.append(there)
    for s in (client, there):
      s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    left = threading.Event()
    _thread(lambda: _pump(client, there) and left.set())
    said = threading.Event()
    hung_up = _pump(there, client, lambda: (said.set(), self.reached.set()))
    if not said.is_set():  # something else than a coordinator: the client may try again
      _end(client)
    elif hung_up and not left.is_set() and not self._closed.is_set():
      self.broken.set()

  def _connect(self) -> socket.socket | None:
    try:
      found = socket.create_connection(self._to, timeout=5)
    except OSError:
      return None
    found.settimeout(None)
    return found


def _pump(source: socket.socket, sink: socket.socket, moved: Callable = lambda: None) -> bool:
  """Carries bytes until one of the two ends; whether it was the source."""
  while True:
    try:
      data = source.recv(1 << 16)
    except OSError:
      return True
    if not data:
      return True
    moved()
    try:
      sink.sendall(data)
    except OSError:
      return False


def _end(connection: socket.socket) -> None:
  """Hangs up; `close` alone says nothing to the other side while a thread still reads."""
  try:
    connection.shutdown(socket.SHUT_RDWR)
  except OSError:  # it did so first
    pass
  connection.close()


def _thread(fn, *args) -> threading.Thread:
  thread = threading.Thread(target=fn, args=args, daemon=True)
  thread.start()
  return thread


class Store:
  """Small texts by key, seen by all processes. Every call is a request of about a millisecond to
  process 0, and waits where that does not answer; RuntimeError where it refuses.
  """

  def __init__(self, client, relay: Relay | None):
    self._client, self._relay = client, relay

  def set(self, key: str, value: str) -> None:
    self._client.key_value_set(_KEY + key, value, allow_overwrite=True)

  def first(self, key: str, value: str) -> bool:
    """Sets what nobody has set; whether this one was the first."""
    try:
      self._client.key_value_set(_KEY + key, value)
    except (RuntimeError, ValueError):  # JAX's error for "already there" differs by version
      return False
    return True

  def under(self, folder: str) -> dict[str, str]:
    """All keys below `folder/`, and their values."""
    found = self._client.key_value_dir_get(f'{_KEY}{folder}/')
    return {k.rpartition('/')[2]: v for k, v in found}

  def wait(self, key: str) -> str:
    """The value of a key, once there is one."""
    while True:
      try:  # in short pieces: no signal is heard within
        return self._client.blocking_key_value_get(_KEY + key, 1000)
      except (RuntimeError, ValueError) as e:
        if 'DEADLINE_EXCEEDED' not in str(e):
          raise

  @property
  def broken(self) -> bool:
    """Whether process 0 hung up."""
    return self._relay is not None and self._relay.broken.is_set()

  def leave(self, seconds: float) -> bool:
    """Says goodbye to JAX's service, once all are about to; whether that went well in time."""
    if self._relay is not None:
      self._relay.close()
    thread = _thread(jax.distributed.shutdown)
    thread.join(seconds)
    return not thread.is_alive()


def _free(port: int) -> None:
  """Raises TimeoutError where something listens at a port already: JAX's service would crash."""
  dual = socket.has_dualstack_ipv6()
  family = socket.AF_INET6 if dual else socket.AF_INET
  try:
    socket.create_server(('', port), family=family, dualstack_ipv6=dual).close()
  except OSError as e:
    if e.errno == errno.EADDRINUSE:
      raise TimeoutError(f'another program listens at port {port} of this host') from None


def join(place, seconds: float, patience: float, waiting: Callable[[], None]) -> Store:
  """Joins the processes of a `cluster.Place`.

  Args:
    seconds: in which all must have come.
    patience: seconds after which JAX's own service gives a silent process up: a last resort.
    waiting: called once, where the others are not there within ten seconds.

  Raises TimeoutError, in one sentence, where they do not come; ValueError where JAX refuses.
  """
  from jax._src import distributed

  host, _, port = place.address.rpartition(':')
  if not place.index and 'JAX_COORDINATOR_BIND_ADDRESS' not in os.environ:
    _free(int(port))
  relay = Relay(host.strip('[]'), int(port)) if place.index else None
  failed: list[Exception] = []
  if any(k.lower() in ('http_proxy', 'https_proxy', 'grpc_proxy') for k in os.environ):
    passed = os.environ.get('no_grpc_proxy') or os.environ.get('no_proxy') or ''
    os.environ['no_grpc_proxy'] = f'{passed},127.0.0.1'.lstrip(',')  # the relay goes past it
  jax.config.update('jax_enable_preemption_service', False)  # it takes SIGTERM for itself

  def initialize():
    try:
      jax.distributed.initialize(
        place.address if relay is None else relay.address,
        place.count,
        place.index,
        None if place.devices is None else list(place.devices),
        cluster_detection_method='deactivate',
        # Its own way to give up ends the process with a stack of C++.
        initialization_timeout=int(10 * seconds) + 60,
        heartbeat_timeout_seconds=int(patience),
      )
    except Exception as e:
      failed.append(e)

  # Not the main thread, which acts on signals only while it does not wait inside a library.
  thread, start, told = _thread(initialize), time.monotonic(), False
  while thread.is_alive() and (passed := time.monotonic() - start) < seconds:
    thread.join(0.1)
    if relay is not None and relay.broken.is_set():
      break
    if passed > 10 and not told:
      told = True
      waiting()
  if failed:
    raise ValueError(f'{type(failed[0]).__name__}: {failed[0]}')
  if thread.is_alive():
    if relay is not None:
      relay.close()
    if relay is not None and relay.broken.is_set():
      raise TimeoutError(f'process 0, at {place.address}, ended before all of the others came')
    raise TimeoutError(
      f'nothing answers at {place.address}, where process 0 must listen'
      if relay is not None and not relay.reached.is_set()
      else f'process 0 answers at {place.address}, but not all of the others came'
      if relay is not None
      else 'the others did not come'
    )
  return Store(distributed.global_state.client, relay)
