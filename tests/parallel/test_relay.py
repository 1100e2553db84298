"""The relay between JAX's client and the coordinator: bytes pass, and an end there stays there."""

import socket
import threading
import time

import pytest

from lmjax.parallel import store


@pytest.fixture
def both():
  """(relay, server, client's socket, server's socket)."""
  server = socket.create_server(('127.0.0.1', 0))
  relay = store.Relay(*server.getsockname())
  host, port = relay.address.split(':')
  client = socket.create_connection((host, int(port)), timeout=5)
  there, _ = server.accept()
  yield relay, client, there
  for s in (client, there, server):
    s.close()


def test_bytes_pass_both_ways(both):
  relay, client, there = both
  data = bytes(range(256)) * 4096
  threading.Thread(target=client.sendall, args=(data,), daemon=True).start()
  got = b''
  while len(got) < len(data):
    got += there.recv(1 << 16)
  assert got == data
  there.sendall(b'answer')
  assert client.recv(100) == b'answer' and relay.reached.is_set()


def test_the_client_does_not_hear_that_the_coordinator_went(both):
  relay, client, there = both
  there.sendall(b'x')
  assert client.recv(1) == b'x'
  there.close()
  assert relay.broken.wait(5)
  client.settimeout(0.3)
  with pytest.raises(TimeoutError):  # an end would be b''
    client.recv(1)


def test_the_client_may_go(both):
  relay, client, there = both
  there.sendall(b'x')
  assert client.recv(1) == b'x'
  client.close()
  time.sleep(0.2)
  there.close()
  time.sleep(0.2)
  assert not relay.broken.is_set()


def test_a_client_hears_of_what_was_no_coordinator(both):
  relay, client, there = both
  there.close()  # without a word
  assert client.recv(1) == b'' and not relay.broken.is_set()


def test_it_waits_for_a_coordinator_that_comes_late():
  with socket.create_server(('127.0.0.1', 0)) as s:
    at = s.getsockname()
  relay = store.Relay(*at)
  host, port = relay.address.split(':')
  client = socket.create_connection((host, int(port)), timeout=5)
  client.sendall(b'hello')
  time.sleep(0.3)
  with socket.create_server(at) as server:
    there, _ = server.accept()
    assert there.recv(5) == b'hello'
    there.close()
  client.close()


def test_a_port_in_use_is_refused_before_anything_crashes():
  with socket.create_server(('127.0.0.1', 0)) as s:
    port = s.getsockname()[1]
    with pytest.raises(TimeoutError, match=f'another program listens at port {port}'):
      store._free(port)
  store._free(port)
