"""SIGTERM saves and ends with the status for 'start again', once or twice, at any moment."""

import pathlib
import signal
import time

import _processes
import _runs
import pytest

GRACE = 10.0  # seconds from the signal to the end of the process, for this model on a busy machine


@pytest.fixture(scope='module')
def train(tmp_path_factory):
  return _runs.texts(tmp_path_factory.mktemp('texts'))


def start(workdir, train, **settings):
  how = dict(steps=100_000, checkpoint_every=50) | settings
  return _processes.Process(_runs.words(workdir, train, **how), workdir)


def ended(p, signals_at=(0.0,), number=signal.SIGTERM) -> int:
  began = time.monotonic()
  for wait in signals_at:
    time.sleep(wait)
    p.process.send_signal(number)
  status = p.wait(60)
  assert time.monotonic() - began < GRACE + sum(signals_at), p.said
  return status


def saved(workdir) -> int:
  steps = _runs.Checkpointer(pathlib.Path(workdir) / 'checkpoints').steps()
  assert steps
  return max(steps)


@pytest.mark.parametrize('signals_at', [(0.0,), (0.0, 0.005), (0.0, 0.0, 0.2, 0.1)])
def test_sigterm_saves_the_step_it_reached(tmp_path, train, signals_at):
  workdir = tmp_path / 'w'
  with start(workdir, train) as p:
    p.until_step(60)
    assert ended(p, signals_at) == 75
  step = saved(workdir)
  assert step == _processes.last_step(workdir) and step % 50, 'saved at the stop, not before'
  assert f'stopped by SIGTERM at step {step}; the same command goes on' in p.said
  assert 'Traceback' not in p.said


def test_sigterm_during_a_save_and_the_same_command_resumes(tmp_path, train):
  workdir = tmp_path / 'w'
  with start(workdir, train, checkpoint_every=3) as p:
    p.until_step(20)
    p.until(lambda: _processes.saving(workdir))
    assert ended(p, (0.0, 0.01)) == 75
  step = saved(workdir)
  with start(workdir, train, checkpoint_every=3) as p:
    p.until_step(step + 4)
    assert f'resumed at step {step}' in p.said
    assert ended(p) == 75
  assert saved(workdir) > step


def test_sigterm_before_the_first_step_ends_at_once(tmp_path, train):
  workdir = tmp_path / 'w'
  with start(workdir, train) as p:
    p.until(lambda: 'parameters' in p.said or (workdir / 'tokens').exists())
    status = ended(p)
  assert status == 75 and 'Traceback' not in p.said
  assert 'stopped by SIGTERM' in p.said
  with start(workdir, train) as p:  # nothing stands in the way
    p.until_step(3)


def test_a_second_interrupt_ends_at_once(tmp_path, train):
  """Ctrl-C twice: no save is waited for, the last checkpoint is whole, no traceback."""
  workdir = tmp_path / 'w'
  with start(workdir, train, checkpoint_every=20) as p:
    p.until_step(45)
    assert ended(p, (0.0, 0.001), signal.SIGINT) in (75, 130)
  assert 'Traceback' not in p.said
  assert saved(workdir) >= 20
