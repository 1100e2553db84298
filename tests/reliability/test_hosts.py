"""The same tokens and losses on any number of processes and devices, also if it changes in mid-run.

Tolerance of the loss: 2e-5 of its value after some tens of steps; sums over devices round apart.
"""

import pathlib
import signal

import _processes
import _runs
import numpy as np
import pytest

TOLERANCE = 2e-5
HOW = dict(
  batch_tokens=512,
  objective='tests.outside.stream:Watched()',
  schedule='constant()',  # `steps` may grow with it
  model__embed='tied(multiple_of=8)',
  checkpoint_every=1000,
)


@pytest.fixture(scope='module')
def train(tmp_path_factory):
  return _runs.texts(tmp_path_factory.mktemp('texts'))


@pytest.fixture(scope='module')
def straight(train, tmp_path_factory):
  """36 steps on one device."""
  workdir = tmp_path_factory.mktemp('straight') / 'w'
  assert _runs.run(workdir, train, **HOW, steps=36) == 0
  return _runs.lines(workdir)


def agree(lines, straight):
  assert [m['step'] for m in lines] == list(range(1, len(lines) + 1)), 'a step is lost or repeated'
  for a, b in zip(lines, straight):
    assert (a['stream'], a['twice']) == (b['stream'], b['twice']), f'other tokens at {a["step"]}'
  a, b = ([m['loss'] for m in x] for x in (lines, straight[: len(lines)]))
  np.testing.assert_allclose(a, b, rtol=TOLERANCE)


MESHES = {
  '1': {},
  '2': dict(mesh__data=2),
  '8': dict(mesh__data=8),
  '4x2': dict(mesh__data=4, mesh__tensor=2),
  '2x2x2': dict(mesh__replica=2, mesh__data=2, mesh__tensor=2),
  '8 explicit': dict(mesh__data=4, mesh__tensor=2, mesh__mode='explicit'),
}


@pytest.mark.slow
@pytest.mark.parametrize(
  'names',
  [('8 explicit', '2x2x2', '8'), ('8', '1', '4x2')],
  ids=str,
)
def test_devices_change_in_mid_run(train, straight, tmp_path, names):
  """Saved on one mesh, restored bit for bit on the next: fsdp, tensor, one device."""
  workdir = tmp_path / 'w'
  for i, name in enumerate(names):
    assert _runs.run(workdir, train, **HOW, **MESHES[name], steps=12 * (i + 1)) == 0
  agree(_runs.lines(workdir), straight)


def end(processes) -> list[int]:
  return [p.wait() for p in processes]


@pytest.mark.slow
@pytest.mark.parametrize('count', [2, 4])
def test_processes(train, straight, tmp_path, count):
  with _processes.several(count, tmp_path / 'w', train, **HOW, steps=12) as processes:
    assert end(processes) == [0] * count, processes[0].said
  agree(_runs.lines(tmp_path / 'w'), straight)
  for p in processes[1:]:  # one process speaks for all; the transport speaks for itself
    assert all(line.startswith('[Gloo]') for line in p.said.splitlines()), p.said


@pytest.mark.slow
def test_the_number_of_processes_changes_in_mid_run(train, straight, tmp_path):
  workdir = tmp_path / 'w'
  for i, (count, devices) in enumerate([(1, 1), (2, 2), (4, 1)]):
    how = HOW | dict(steps=12 * (i + 1))
    with _processes.several(count, workdir, train, devices=devices, **how) as processes:
      assert end(processes) == [0] * count, processes[0].said
  agree(_runs.lines(workdir), straight)


@pytest.mark.slow
def test_one_process_is_told_to_stop_and_both_do(train, straight, tmp_path):
  """After the same step, saved; one process then goes on alone."""
  workdir = tmp_path / 'w'
  how = HOW | dict(checkpoint_every=0)
  with _processes.several(2, workdir, train, **how, steps=100_000) as processes:
    processes[0].until_step(5)
    processes[1].process.send_signal(signal.SIGTERM)
    assert end(processes) == [75, 75], processes[0].said
  step = max(_runs.Checkpointer(pathlib.Path(workdir) / 'checkpoints').steps())
  assert step == _processes.last_step(workdir)
  assert _runs.run(workdir, train, **how, steps=step + 3) == 0
  lines = _runs.lines(workdir)
  assert lines[-1]['step'] == step + 3
  agree(lines[:36], straight)


def test_several_processes_need_a_mesh_over_all(train, tmp_path):
  with _processes.several(2, tmp_path / 'w', train, '--config.mesh.data=1', steps=2) as processes:
    assert end(processes) == [2, 2]
  assert all('config.mesh asks for one device' in p.said for p in processes)
  assert not (tmp_path / 'w').exists()
