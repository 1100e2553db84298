"""Engines on real processes: a worker that is killed, a trial that fails, being told to stop."""

import os
import pathlib
import signal
import subprocess
import sys

import _tiny
import pytest

from lmjax.experiment import declare
from lmjax.experiment import engines
from lmjax.experiment import execute
from lmjax.experiment import local
from lmjax.experiment import measures
from lmjax.experiment import remote

STEPS, KILLED, EVERY = 600, 60, 50


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
  monkeypatch.setenv('XLA_FLAGS', _tiny.ONE_DEVICE)


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
  """The record of a run that nothing disturbed."""
  with pytest.MonkeyPatch.context() as m:
    m.setenv('XLA_FLAGS', _tiny.ONE_DEVICE)
    runs = tmp_path_factory.mktemp('straight')
    ((_, record),) = local.Local(1).run(
      [_tiny.trial(STEPS, checkpoint_every=EVERY)], runs, measures.final_loss
    )
  assert record['status'] == execute.DONE
  return record


@pytest.fixture
def ray():
  """A Ray of one core on this machine."""
  ray = pytest.importorskip('ray', reason="Ray is not installed: pip install 'lmjax[ray]'")
  ray.init(
    address='local',
    num_cpus=1,
    resources={'TPU': 4},
    include_dashboard=False,
    log_to_driver=False,
    logging_level='warning',
  )
  yield ray
  ray.shutdown()


@pytest.fixture
def submitit():
  return pytest.importorskip(
    'submitit', reason="submitit is not installed: pip install 'lmjax[slurm]'"
  )


def check_resumed(runs, t, record, straight):
  assert record['status'] == execute.DONE, record['message']
  (step,) = _tiny.resumed(runs, t)
  assert EVERY <= step < STEPS, 'killed before its first checkpoint, or after the last step'
  assert record['value'] == straight['value'] and record['curve'] == straight['curve']


def check_one_fails(records):
  assert records[1]['status'] == records[3]['status'] == execute.DONE
  assert records[2]['status'] == execute.FAILED
  assert 'nothing.jsonl' in records[2]['message'] and records[2]['value'] is None
  # Whatever became of it, a record has the same keys.
  assert records[2].keys() == records[1].keys()


def three(one_bad: str):
  """Seeds 1, 2, 3; the second one's validation text is not there."""
  bad = {'data__valid': f'jsonl(path="{one_bad}/nothing.jsonl")'}
  return [_tiny.trial(seed=s, **(bad if s == 2 else {})) for s in (1, 2, 3)]


def check_stopped(engine, runs):
  """Told to stop in the middle of a run, with another one waiting behind it."""
  first, second = _tiny.trial(100_000), _tiny.trial(100_000, seed=2)
  found = _tiny.collect(engine, [first, second], runs)
  pid = _tiny.until_step(runs, first, KILLED)
  engine.stop()
  records = found.end()
  assert _tiny.ended(pid)
  assert records[1]['status'] == execute.STOPPED
  assert records.get(2, {'status': execute.STOPPED})['status'] == execute.STOPPED
  assert not (execute.folder(runs, second) / 'run').exists(), 'the second one was started'
  saved = [
    int(f.parent.name) for f in execute.folder(runs, first).glob('run/checkpoints/*/manifest.json')
  ]
  assert saved and max(saved) >= KILLED, 'it did not save'
  assert not list(pathlib.Path(runs).glob('.engine-*')), 'the folder of a stop is left behind'


# ------------------------------------------------------------------ Ray


@pytest.mark.slow
def test_ray_starts_a_trial_again_whose_worker_was_killed(ray, straight, tmp_path):
  t = _tiny.trial(STEPS, checkpoint_every=EVERY)
  found = _tiny.collect(engines.make('ray', 0, {'resources': 'TPU:4'}), [t], tmp_path)
  _tiny.kill_worker(tmp_path, t, KILLED)
  check_resumed(tmp_path, t, found.end()[1], straight)


@pytest.mark.slow
def test_ray_keeps_the_others_where_one_fails(ray, tmp_path):
  records = _tiny.collect(engines.make('ray', 2, {}), three(str(tmp_path)), tmp_path).end()
  check_one_fails(records)


@pytest.mark.slow
def test_ray_keeps_the_others_where_a_worker_dies_for_good(ray, tmp_path):
  t = _tiny.trial(100_000)
  found = _tiny.collect(
    engines.make('ray', 0, {'retries': '1'}), [t, _tiny.trial(seed=2)], tmp_path
  )
  pid, _ = _tiny.kill_worker(tmp_path, t, KILLED)
  _tiny.until(lambda: _tiny.ended(pid), 'the run to end with its worker')
  again, _ = _tiny.kill_worker(tmp_path, t, execute.last_step(execute.folder(tmp_path, t)) + 1)
  assert again != pid
  records = found.end()
  assert records[1]['status'] == execute.FAILED
  assert 'its worker died 2 times' in records[1]['message']
  assert records[2]['status'] == execute.DONE
  assert records[1].keys() == records[2].keys()
  _tiny.until(lambda: _tiny.ended(again), 'the run to end with its worker')


@pytest.mark.slow
def test_ray_stops(ray, tmp_path):
  check_stopped(engines.make('ray', 0, {}), tmp_path)


@pytest.mark.slow
def test_ray_refuses_what_this_machine_cannot_run_and_leaves_signals_to_the_runner(tmp_path):
  ray = pytest.importorskip('ray', reason="Ray is not installed: pip install 'lmjax[ray]'")
  mine = lambda *_: None
  old = signal.signal(signal.SIGTERM, mine)
  try:
    engine = engines.make('ray', 0, {'resources': 'disk:1'})
    with pytest.raises(declare.ExperimentError, match='asks for 1 disk, and this machine has 0'):
      next(engine.run([_tiny.trial()], tmp_path, measures.final_loss))
    assert signal.getsignal(signal.SIGTERM) is mine
  finally:
    signal.signal(signal.SIGTERM, old)
    ray.shutdown()


# ------------------------------------------------------------------ submitit


@pytest.mark.slow
def test_slurm_starts_a_trial_again_whose_job_was_killed(submitit, straight, tmp_path):
  t = _tiny.trial(STEPS, checkpoint_every=EVERY)
  found = _tiny.collect(engines.make('slurm', 1, {'cluster': 'local'}), [t], tmp_path)
  _tiny.kill_worker(tmp_path, t, KILLED)
  check_resumed(tmp_path, t, found.end()[1], straight)


@pytest.mark.slow
def test_slurm_goes_on_after_a_preemption(submitit, straight, tmp_path):
  t = _tiny.trial(STEPS, checkpoint_every=EVERY)
  found = _tiny.collect(engines.make('slurm', 1, {'cluster': 'local'}), [t], tmp_path)
  pid = _tiny.until_step(tmp_path, t, KILLED)
  os.kill(pid, signal.SIGUSR2)  # Slurm signals every process of the job
  os.kill(_tiny.parent(pid), signal.SIGUSR2)
  record = found.end()[1]
  check_resumed(tmp_path, t, record, straight)
  assert record['attempts'] == 2, 'the job did not wait for its run to save'
  assert 'Requeued' in ''.join(f.read_text() for f in tmp_path.glob('submitit/*.out'))


@pytest.mark.slow
def test_slurm_keeps_the_others_where_one_fails(submitit, tmp_path):
  engine = engines.make('slurm', 2, {'cluster': 'local'})
  check_one_fails(_tiny.collect(engine, three(str(tmp_path)), tmp_path).end())


@pytest.mark.slow
def test_slurm_stops(submitit, tmp_path):
  check_stopped(engines.make('slurm', 1, {'cluster': 'local'}), tmp_path)


@pytest.fixture
def sbatch(tmp_path, monkeypatch):
  """A Slurm that takes scripts, keeps them, and never runs them."""
  folder = tmp_path / 'bin'
  folder.mkdir()
  for name, text in dict(
    sbatch=f'cp "$1" {folder}/script.$(ls {folder} | wc -l); echo "Submitted batch job 12"',
    srun='exit 1',
    sacct='echo "JobID|State"; for i in 0 1 2; do echo "12_$i|PENDING"; done',
    scancel=f'echo "$@" >> {folder}/cancelled',
  ).items():
    (folder / name).write_text(f'#!/bin/sh\n{text}\n')
    (folder / name).chmod(0o755)
  monkeypatch.setenv('PATH', f'{folder}{os.pathsep}{os.environ["PATH"]}')
  return folder


def test_slurm_hands_in_one_array(submitit, sbatch, tmp_path):
  options = dict(partition='gpu', time='240', mem_gb='64', grace='300', setup='module load x')
  engine = engines.make('slurm', 2, options)
  e = _tiny.experiment(scales={'cpu': declare.Scale((10,), cores=3, gpus=4)})
  trials = [_tiny.trials.trial(e, 'cpu', e.baseline, {'peak_lr': 1e-2}, s, 10) for s in (1, 2, 3)]
  found = _tiny.collect(engine, trials, tmp_path)
  script = _tiny.until(lambda: next(sbatch.glob('script.*'), None), 'a script').read_text()
  lines = {line.removeprefix('#SBATCH ') for line in script.splitlines()}
  assert {
    '--array=0-2%2',
    '--cpus-per-task=3',
    '--gpus-per-node=4',
    '--job-name=lmjax',
    '--mem=64GB',
    '--nodes=1',
    '--partition=gpu',
    '--requeue',
    '--signal=USR2@300',
    '--time=240',
    'module load x',
  } <= lines
  assert len(list(sbatch.glob('script.*'))) == 1
  # Told to stop, it cancels what is still in the queue.
  engine.stop()
  assert found.end(60) == {}
  assert (sbatch / 'cancelled').read_text().split() == ['12_0', '12_1', '12_2']


# ------------------------------------------------------------------ all


def test_a_worker_with_other_code_refuses_the_trial(tmp_path):
  t = _tiny.trial()
  other = type(t)(**{**vars(t), 'code': '0' * 16})
  record = remote.here(other, tmp_path, measures.final_loss, remote.Control(tmp_path))
  assert record['status'] == execute.FAILED and 'another code' in record['message']
  assert not execute.folder(tmp_path, other).exists()


def test_a_guard_ends_the_run_of_a_worker_that_dies():
  code = (
    'import subprocess, sys, time\n'
    'from lmjax.experiment import remote\n'
    'p = subprocess.Popen(["sleep", "100"])\n'
    'remote.Guarded().add(p)\n'
    'print(p.pid, flush=True)\n'
    'time.sleep(100)'
  )
  with subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True) as worker:
    pid = int(worker.stdout.readline())
    assert not _tiny.ended(pid)
    worker.kill()
  _tiny.until(lambda: _tiny.ended(pid), 'the guard', 10)


def test_a_guard_leaves_a_run_alone_whose_worker_lives():
  stopping = remote.Guarded()
  with subprocess.Popen(['sleep', '0.3']) as p:
    stopping.add(p)
    guard = stopping._guards[p.pid]
    assert p.wait() == 0
    stopping.remove(p)
  assert guard.returncode == 0, 'it tried to end a process of that number'
  assert not stopping._guards


def test_a_trial_that_cannot_even_begin_has_a_record(tmp_path):
  t = _tiny.trial()
  execute.folder(tmp_path, t).write_text('in the way')
  record = remote.here(t, tmp_path, measures.final_loss, remote.Control(tmp_path))
  assert record['status'] == execute.FAILED and 'exists' in record['message']


@pytest.mark.parametrize(
  'name,options,text',
  [
    ('ray', {'adress': 'auto'}, "--engine=ray: option 'adress': address, resources, retries are"),
    ('ray', {'resources': 'TPU'}, "--engine=ray: resources='TPU': names with amounts are expected"),
    ('ray', {'resources': 'TPU:-1'}, "--engine=ray: resources='TPU:-1': names with amounts are"),
    ('ray', {'retries': 'x'}, "--engine=ray: retries='x': times are expected"),
    ('slurm', {'time': 'x'}, "--engine=slurm: time='x': minutes are expected"),
    ('slurm', {'time': '0'}, "--engine=slurm: time='0': minutes are expected"),
    ('slurm', {'mem_gb': '1.5GB'}, "--engine=slurm: mem_gb='1.5GB': gigabytes are expected"),
    ('slurm', {'time': '2', 'grace': '120'}, "--engine=slurm: grace='120': fewer seconds than"),
    ('slurm', {'queue': 'gpu'}, "--engine=slurm: option 'queue': cluster, folder, time, grace"),
  ],
)
def test_options_are_refused_by_name(name, options, text):
  pytest.importorskip({'slurm': 'submitit'}.get(name, name))
  with pytest.raises(declare.ExperimentError) as e:
    engines.make(name, 0, options)
  assert str(e.value).startswith(text)


def test_a_cluster_that_is_not_there_is_named(submitit, tmp_path):
  engine = engines.make('slurm', 0, {'cluster': 'moon'})
  with pytest.raises(declare.ExperimentError, match="cluster='moon'"):
    next(engine.run([_tiny.trial()], tmp_path, measures.final_loss))


@pytest.mark.parametrize('name,package', [('ray', 'ray'), ('slurm', 'submitit')])
def test_an_engine_without_its_package_says_what_to_install(monkeypatch, name, package):
  monkeypatch.setitem(sys.modules, package, None)
  monkeypatch.delitem(sys.modules, f'lmjax.experiment.{name}_engine', raising=False)
  monkeypatch.delattr(f'lmjax.experiment.{name}_engine', raising=False)
  with pytest.raises(declare.ExperimentError) as e:
    engines.make(name, 0, {})
  assert str(e.value).endswith(f"pip install 'lmjax[{name}]'")
