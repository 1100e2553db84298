"""A save that fails ends the run or is tried again; training never goes on in silence."""

import os
import pathlib
import subprocess

import _processes
import _runs
import pytest


@pytest.fixture(scope='module')
def train(tmp_path_factory):
  return _runs.texts(tmp_path_factory.mktemp('texts'))


@pytest.fixture
def disk(tmp_path):
  """A file system of 8 MB of its own."""
  folder = tmp_path / 'disk'
  folder.mkdir()
  command = ['mount', '-t', 'tmpfs', '-o', 'size=8m', 'tmpfs', str(folder)]
  if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
    pytest.skip('a small tmpfs cannot be mounted here; it needs root')
  yield folder
  subprocess.run(['umount', '-l', str(folder)], check=True)


HOW = dict(steps=100_000, checkpoint_every=10)


def fill(disk: pathlib.Path):
  """Leaves no byte free."""
  with open(disk / 'full', 'wb', buffering=0) as f:
    try:
      while True:
        f.write(bytes(65536))
    except OSError:
      pass


def last_line(p) -> str:
  """The last one of ours: around it stand the tracebacks that the library logs from its threads."""
  return [line for line in p.said.splitlines() if line.startswith('lmjax: ')][-1]


def steps(workdir):
  return _runs.Checkpointer(workdir / 'checkpoints').steps()


def test_a_full_disk_ends_the_run(disk, train, tmp_path):
  workdir = disk / 'w'
  words = _runs.words(workdir, train, **HOW, data__cache=tmp_path / 'tokens')
  with _processes.Process(words, tmp_path / 'w') as p:
    p.workdir = workdir
    p.until_step(25)
    fill(disk)
    status = p.wait()
  assert status == 74, p.said
  assert 'No space left' in last_line(p)
  (disk / 'full').unlink()
  before = steps(workdir)
  assert before, 'the checkpoints from before are whole'
  with _processes.Process(words, tmp_path / 'again') as p:
    p.workdir = workdir
    p.until(lambda: f'resumed at step {before[-1]}' in p.said)


def test_a_failed_save_is_tried_again_by_policy(disk, train, tmp_path):
  workdir = disk / 'w'
  words = _runs.words(
    workdir, train, **HOW, save_retries=10**6, data__cache=tmp_path / 'tokens', log_every=10**6
  )
  with _processes.Process(words, tmp_path / 'w') as p:
    p.workdir = workdir
    p.until(lambda: steps(workdir))
    fill(disk)
    p.until(lambda: 'tried again (2 of' in p.said)
    failed = max(steps(workdir))
    (disk / 'full').unlink()
    p.until(lambda: max(steps(workdir)) > failed)
    assert 'No space left' in p.said


def test_a_disk_too_small_for_the_metrics_ends_the_run(disk, train, tmp_path):
  """Nothing was saved yet: still the status says that the disk was at fault, and the line where."""
  workdir = disk / 'w'
  fill(disk)
  os.truncate(disk / 'full', (disk / 'full').stat().st_size - (28 << 10))
  how = HOW | dict(checkpoint_every=0, data__cache=tmp_path / 'tokens')
  with _processes.Process(_runs.words(workdir, train, **how), tmp_path / 'w') as p:
    status = p.wait()
  assert status == 74, p.said
  assert f'{workdir}/metrics.jsonl cannot be written: No space left' in last_line(p)
  assert 'Traceback' not in p.said


def test_permission_lost_ends_the_run(disk, train, tmp_path):
  """The file system becomes read-only, as those with errors do."""
  workdir = disk / 'w'
  with _processes.Process(_runs.words(workdir, train, **HOW), tmp_path / 'w') as p:
    p.workdir = workdir
    p.until_step(25)
    folder = str(workdir / 'checkpoints')
    subprocess.run(['mount', '--bind', folder, folder], check=True)
    try:
      subprocess.run(['mount', '-o', 'remount,bind,ro', folder], check=True)
      status = p.wait()
    finally:
      subprocess.run(['umount', '-l', folder], check=True)
  assert status == 74, p.said
  assert 'Read-only file system' in last_line(p)
  assert steps(workdir)
