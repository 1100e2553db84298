"""SIGTERM saves and ends with the status for 'start again', once or twice, at any moment."""

import contextlib
import pathlib
import signal
import subprocess
import sys
import time

import _processes
import _runs
from jax.experimental import multihost_utils
import pytest

from lmjax import exits
from lmjax import feed
from lmjax.checkpoint import arrays
from lmjax.parallel import processes

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


@pytest.mark.parametrize(
  'signals_at',
  [
    (0.0, 0.0, 0.2, 0.1),
    *(pytest.param(s, marks=pytest.mark.slow) for s in ((0.0,), (0.0, 0.005))),
  ],
)
def test_sigterm_saves_the_step_it_reached(tmp_path, train, signals_at):
  workdir = tmp_path / 'w'
  with start(workdir, train) as p:
    p.until_step(60)
    assert ended(p, signals_at) == 75
  step = saved(workdir)
  assert step == _processes.last_step(workdir) and step % 50, 'saved at the stop, not before'
  assert f'stopped by SIGTERM at step {step}; the same command goes on' in p.said
  assert 'Traceback' not in p.said


@pytest.mark.slow
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


@pytest.fixture
def terminal():
  """SIGHUP as a terminal leaves it; what runs the tests may ignore it, which is inherited."""
  old = signal.signal(signal.SIGHUP, signal.SIG_DFL)
  yield
  signal.signal(signal.SIGHUP, old)


@pytest.mark.usefixtures('terminal')
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_inside_a_restore_is_no_damage(tmp_path, train, monkeypatch, capsys, number):
  """Orbax's errors of all kinds are caught there; being told to stop is none of them."""
  assert _runs.run(tmp_path / 'w', train, steps=4) == 0
  original = arrays.ocp.Checkpointer.restore

  def told(self, *args, **kw):
    signal.raise_signal(number)
    return original(self, *args, **kw)

  monkeypatch.setattr(arrays.ocp.Checkpointer, 'restore', told)
  assert _runs.run(tmp_path / 'w', train, steps=4) == 75
  assert 'stopped by SIG' in capsys.readouterr().err


def test_a_swallowed_signal_stops_after_the_first_step(tmp_path, train, monkeypatch):
  """Python drops what is raised in a destructor, and libraries what is raised in a callback."""
  original = feed.Feed.describe

  def describe(self):
    with contextlib.suppress(exits.Ended):
      signal.raise_signal(signal.SIGTERM)
    return original(self)

  monkeypatch.setattr(feed.Feed, 'describe', describe)
  assert _runs.run(tmp_path / 'w', train, steps=4) == 75
  assert saved(tmp_path / 'w') == 1


def test_a_stop_that_python_drops_is_one_line(tmp_path, train, monkeypatch, capsys):
  original = feed.Feed.describe

  class Dropped:
    def __del__(self):
      signal.raise_signal(signal.SIGTERM)

  def describe(self):
    Dropped()
    return original(self)

  monkeypatch.setattr(feed.Feed, 'describe', describe)
  assert _runs.run(tmp_path / 'w', train, steps=4) == 75
  assert saved(tmp_path / 'w') == 1
  told = capsys.readouterr().err
  assert 'SIGTERM: stopping after the first step' in told
  assert 'ignored' not in told and 'Traceback' not in told


def test_what_ends_the_first_process_ends_all_alike(monkeypatch):
  monkeypatch.setattr(processes.jax, 'process_count', lambda: 2)
  monkeypatch.setattr(multihost_utils, 'broadcast_one_to_all', lambda x: x)

  def full():
    raise exits.Ended(exits.DISK, 'the disk is full')

  with pytest.raises(exits.Ended, match='the disk is full') as e:
    processes.from_primary(full)
  assert e.value.status == exits.DISK


def test_sigterm_before_the_first_step_ends_at_once(tmp_path, train):
  workdir = tmp_path / 'w'
  with start(workdir, train) as p:
    p.until(lambda: 'parameters' in p.said or (workdir / 'tokens').exists())
    status = ended(p)
  assert status == 75 and 'Traceback' not in p.said
  assert 'stopped by SIGTERM' in p.said
  with start(workdir, train) as p:  # nothing stands in the way
    p.until_step(3)


@pytest.mark.slow
def test_sighup_saves_and_nohup_is_obeyed(tmp_path, train, terminal):
  """A closed ssh: the terminal is gone, so that nothing may be said to it."""
  workdir = tmp_path / 'w'
  with start(workdir, train) as p:
    p.until_step(20)
    assert ended(p, number=signal.SIGHUP) == 75
  step = saved(workdir)
  old = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # inherited
  try:
    with start(workdir, train) as p:
      p.until_step(step + 3)
      p.process.send_signal(signal.SIGHUP)
      p.until_step(step + 20)
      assert ended(p) == 75
  finally:
    signal.signal(signal.SIGHUP, old)


def test_a_closed_pipe_ends_nothing(tmp_path, train):
  """As of `| head`, or of an ssh without a terminal that is gone."""
  words = _runs.words(tmp_path / 'w', train, steps=30, checkpoint_every=10)
  command = [sys.executable, '-m', 'lmjax.main', *words]
  with subprocess.Popen(command, cwd=_processes.ROOT, stderr=subprocess.PIPE) as p:
    p.stderr.readline()
    p.stderr.close()
    assert p.wait(120) == 0
  assert saved(tmp_path / 'w') == 30


@pytest.mark.parametrize('index', [0, pytest.param(1, marks=pytest.mark.slow)])
def test_sigterm_while_the_other_process_is_awaited(tmp_path, train, index):
  workdir = tmp_path / 'w'
  join = [f'--coordinator=127.0.0.1:{_processes.port()}', '--processes=2', f'--process={index}']
  with _processes.Process([*_runs.words(workdir, train), *join], workdir) as p:
    time.sleep(6)
    assert ended(p) == 75
  assert 'stopped by SIGTERM' in p.said and 'Traceback' not in p.said
  assert not workdir.exists()


def test_a_coordinator_that_is_not_there():
  join = [f'--coordinator=127.0.0.1:{_processes.port()}', '--processes=2', '--process=1']
  join += ['--join_timeout=5']
  command = [sys.executable, '-m', 'lmjax.main', '--config=quickstart', '--workdir=absent', *join]
  found = subprocess.run(command, capture_output=True, text=True, timeout=60)
  assert found.returncode == 75, found.stderr
  assert 'could not join (--join_timeout=5): nothing answers at 127.0.0.1:' in found.stderr
  assert 'Traceback' not in found.stderr and 'Check failure' not in found.stderr


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize('wait', [0.0, 0.1, 0.3, 1.0])
@pytest.mark.skipif(not pathlib.Path('/proc/self/status').exists(), reason='asks the system')
def test_a_signal_in_the_first_second(tmp_path, train, wait, number):
  """While Python still imports: no traceback, nothing swallowed."""

  def ours():  # no longer that of a starting interpreter
    status = pathlib.Path(f'/proc/{p.process.pid}/status').read_text()
    return int(status.partition('SigCgt:')[2].split()[0], 16) >> (signal.SIGTERM - 1) & 1

  with start(tmp_path / 'w', train) as p:
    p.until(ours)
    time.sleep(wait)
    assert ended(p, number=number) == 75, p.said
  assert 'Traceback' not in p.said and 'stopped by SIG' in p.said


def test_the_threads_of_a_failed_save_are_not_waited_for():
  """Orbax's wait five minutes for a folder that could not be made."""
  code = 'import threading, time\nfrom lmjax import main\nmain.main = lambda: 74\n'
  code += 'threading.Thread(target=time.sleep, args=(50,)).start()\nmain.command()'
  began = time.monotonic()
  assert subprocess.run([sys.executable, '-c', code], timeout=60).returncode == 74
  assert time.monotonic() - began < 40


@pytest.mark.slow
def test_a_second_interrupt_ends_at_once(tmp_path, train):
  """Ctrl-C twice: no save is waited for, the last checkpoint is whole, no traceback."""
  workdir = tmp_path / 'w'
  with start(workdir, train, checkpoint_every=20) as p:
    p.until_step(45)
    assert ended(p, (0.0, 0.001), signal.SIGINT) in (75, 130)
  assert 'Traceback' not in p.said
  assert saved(workdir) >= 20
