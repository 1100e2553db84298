"""The watchdog: silent while something moves, then it names process, last step and threads."""

import subprocess
import sys
import time

import _runs
import pytest

from lmjax import evaluate
from lmjax import feed
from lmjax import watchdog

HANG = """
import sys, time
from lmjax import watchdog
with watchdog.Watchdog(0.4, end={end}, process=3) as w:
  for step in range(4):
    w.beat(f'step {{step}} was dispatched')
    time.sleep(0.15)
  def waits_for_a_lost_process():
    time.sleep(1.6)
  waits_for_a_lost_process()
print('went on')
"""


def hang(end):
  return subprocess.run(
    [sys.executable, '-c', HANG.format(end=end)], capture_output=True, text=True
  )


def test_it_speaks_and_the_run_goes_on():
  found = hang(False)
  assert found.returncode == 0 and 'went on' in found.stdout
  assert 'process 3 (pid' in found.stderr and 'step 3 was dispatched' in found.stderr
  assert 'waits_for_a_lost_process' in found.stderr  # where the thread stands
  assert 2 <= found.stderr.count('has not moved') <= 4  # again after each such time


def test_it_ends_a_process_that_cannot_be_woken():
  found = hang(True)
  assert found.returncode == 75 and 'went on' not in found.stdout
  assert found.stderr.count('has not moved') == 1


def test_what_compiles_may_take_its_time(capfd):
  with watchdog.Watchdog(0.2) as w:
    w.beat('step 1 was begun', slow=True)
    time.sleep(0.7)
    assert 'watchdog' not in capfd.readouterr().err
    w.beat('step 1 was dispatched')
    time.sleep(0.7)
  assert 'step 1 was dispatched' in capfd.readouterr().err


def test_an_evaluation_moves_with_each_batch():
  moved = []
  rows = lambda *_: (dict(loss=(1.0, 1.0)), {})
  evaluate.held_out(rows, {}, {}, [0, 1, 2], bytes_per_token=None, moved=moved.append)
  assert moved == [0, 1, 2]


def test_a_healthy_run_is_left_alone(tmp_path, monkeypatch, capfd):
  """Compiling and a long evaluation of quick batches take longer than the watchdog waits."""
  batches = feed.Feed.valid

  def slowly(found, seconds):
    for batch in found:
      time.sleep(seconds)
      yield batch

  monkeypatch.setattr(feed.Feed, 'valid', lambda self: slowly(batches(self), 0.9))
  how = dict(steps=1, eval__batches=5, watchdog__seconds=3.0)
  how['data.valid'] = 'shakespeare(split="valid")'
  assert _runs.run(tmp_path / 'w', _runs.texts(tmp_path), **how) == 0
  assert 'watchdog' not in capfd.readouterr().err


@pytest.mark.parametrize('seconds', [0.3, 0])
def test_it_is_silent_while_something_moves(seconds, capfd):
  with watchdog.Watchdog(seconds) as w:
    for _ in range(8):
      time.sleep(0.1)
      if seconds:
        w.beat('moved')
  assert 'watchdog' not in capfd.readouterr().err
