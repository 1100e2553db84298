"""Who is lost: found in time and named, and nobody taken for lost who is not. On a store of this
process; `reliability/test_lost.py` does it with real processes.
"""

import socket
import threading
import time

import pytest

from lmjax import exits
from lmjax.parallel import alive as alive_lib
from lmjax.parallel import processes

SECONDS = 1.0


class Shared:
  """What the coordinator keeps."""

  def __init__(self):
    self.values, self.lock = {}, threading.Lock()


class Store:
  """One process's way to it, which may be cut or hang."""

  def __init__(self, shared):
    self.shared, self.broken, self.hangs = shared, False, threading.Event()
    self.hangs.set()  # set: it answers

  def set(self, key, value):
    self.hangs.wait()
    with self.shared.lock:
      self.shared.values[key] = value

  def first(self, key, value):
    self.hangs.wait()
    with self.shared.lock:
      return self.shared.values.setdefault(key, value) == value

  def under(self, folder):
    self.hangs.wait()
    with self.shared.lock:
      found = dict(self.shared.values)
    return {k.rpartition('/')[2]: v for k, v in found.items() if k.startswith(f'{folder}/')}


@pytest.fixture
def three(monkeypatch):
  """Three processes; `ended` receives how each ends."""
  shared, ended = Shared(), {}

  def make(i):
    one = alive_lib.Alive(Store(shared), i, 3, SECONDS)
    one.hosts = {0: 'a', 1: 'b', 2: 'c'}

    def end(status, why):
      ended.setdefault(i, (status, why))
      one._closed.set()

    one._end = end
    return one

  monkeypatch.setattr(alive_lib, '_GRACE', 0.3)
  group = [make(i) for i in range(3)]
  for one in group:
    one._short = 0.5
    one.start()
  time.sleep(0.3)
  yield group, ended
  for one in group:
    one._closed.set()
    one._store.hangs.set()


def within(seconds, holds):
  end = time.monotonic() + seconds
  while not holds() and time.monotonic() < end:
    time.sleep(0.02)
  assert holds()


def freeze(one):
  one._closed.set()


def test_all_alive_are_left_alone(three):
  _, ended = three
  time.sleep(2.5 * SECONDS)
  assert not ended


@pytest.mark.parametrize('victim', [0, 1, 2])
def test_a_silent_one_is_named_by_all_others(three, victim):
  group, ended = three
  freeze(group[victim])
  within(5 * SECONDS, lambda: len(ended) == 2)
  assert victim not in ended
  for status, why in ended.values():
    assert status == exits.RETRY
    assert f'process {victim} ({"abc"[victim]}) was lost' in why


def test_one_whose_coordinator_does_not_answer_gives_up(three):
  group, ended = three
  group[2]._store.hangs.clear()
  within(5 * SECONDS, lambda: len(ended) == 3)
  assert 'process 0 (a) was lost' in ended[2][1] and 'process 2 (c) was lost' in ended[1][1]


def test_a_coordinator_that_hangs_up_is_lost_at_once(three):
  group, ended = three
  group[1]._store.broken = True
  within(1.0, lambda: 1 in ended)
  assert ended[1][0] == exits.RETRY and 'process 0 (a) was lost: it closed' in ended[1][1]


def test_a_reason_ends_the_others_with_its_status(three):
  group, ended = three
  group[1].ending(exits.DISK, 'no space left')
  group[2].ending(exits.USER, 'because the first one went')  # is no news
  within(2.0, lambda: 0 in ended)
  assert ended[0] == (exits.DISK, f'process 1 ({socket.gethostname()}) ended: no space left')
  assert 1 not in ended and 2 not in ended  # they end by themselves


def test_a_symptom_finds_the_silent_one_soon_and_blames_nobody_else(three, monkeypatch):
  group, ended = three
  for one in group:
    one.seconds = 60.0
  group[1].suspect()
  assert not ended
  freeze(group[2])
  within(3.0, lambda: len(ended) == 2)
  assert all('process 2 (c) was lost' in why for _, why in ended.values())


def test_who_said_goodbye_is_not_missed(three):
  group, ended = three
  threads = [threading.Thread(target=one.depart, kwargs=dict(well=True)) for one in group]
  for t in threads[1:]:
    t.start()
  time.sleep(2.5 * SECONDS)
  assert not ended and threads[1].is_alive()  # they wait for process 0, which hosts the store
  threads[0].start()
  for t in threads:
    t.join(2)
    assert not t.is_alive()


def test_time_in_which_it_was_frozen_itself_does_not_count(three):
  group, ended = three
  for one in group:
    one._tick -= 1000  # the clock went on by that
  time.sleep(0.5)
  assert not ended


def votes(three, monkeypatch):
  group, _ = three
  out = []
  for i, one in enumerate(group):
    here = processes.Together(i, 3, 'abc'[i], one._store, one)
    monkeypatch.setattr(processes, '_here', [here])
    out.append(processes.StopVote())
  return out


def test_all_stop_after_the_same_step_however_far_each_is(three, monkeypatch):
  """Process 2 waits for a step that the first has not begun, and can vote only in a thread."""
  stops, begun = [None] * 3, [0] * 3

  def loop(i, vote):
    for done in range(1, 10_000):
      begun[i] = done
      if vote(done, wanted=i == 0 and done > 20):
        stops[i] = done
        return
      while done > min(begun) + 2:  # metrics of the step before the last
        time.sleep(0.001)
      time.sleep(0.001)

  threads = [
    threading.Thread(target=loop, args=x, daemon=True) for x in enumerate(votes(three, monkeypatch))
  ]
  for t in threads:
    t.start()
  for t in threads:
    t.join(20)
  assert None not in stops and len(set(stops)) == 1 and stops[0] > 20


def test_one_that_is_through_with_its_steps_still_votes(three, monkeypatch):
  a, b, c = votes(three, monkeypatch)
  for v in (a, b, c):
    assert not v(9, False)
  b.publish(9)
  c.publish(9)
  step, end = 9, time.monotonic() + 5
  while not (found := a(step, True)) and time.monotonic() < end:
    time.sleep(0.02)
    step += 1
  assert found


def test_alone_the_vote_is_the_plain_wish():
  vote = processes.StopVote()
  assert vote(1, True) and not vote(1, False)
