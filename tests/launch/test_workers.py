"""What runs on the workers: starting again, and a Slurm job."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import _processes
import _runs
import _tools
import pytest

from lmjax.tracking import read_metrics

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAUNCH = ROOT / 'launch'


@pytest.fixture
def env(tmp_path):
  found = _tools.install(tmp_path)
  return {k: v for k, v in found.items() if not k.startswith(('SLURM_', 'TPU_', 'LMJAX_P'))}


SLURM = dict(SLURM_JOB_ID='41', SLURM_STEP_NODELIST='127.0.0.1', SLURM_NTASKS='2')


# ------------------------------------------------------------------ starting again


def python(folder, body: str) -> str:
  """A stand-in for Python that counts its starts."""
  file = folder / 'python.sh'
  file.write_text(
    f'#!/bin/bash\necho "$@" >> {folder}/starts\nn=$(wc -l < {folder}/starts)\n{body}'
  )
  file.chmod(0o755)
  return str(file)


def worker(env, folder, body, **more):
  env = {**env, 'LMJAX_PYTHON': python(folder, body), 'LMJAX_PAUSE': '0', **more}
  command = [LAUNCH / 'worker.sh', '--config=a b', '--workdir=w']
  return subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL)


def starts(folder):
  file = folder / 'starts'
  return file.read_text().splitlines() if file.exists() else []


@pytest.mark.parametrize(
  'body, restarts, status, times',
  [
    ('exit $((n < 3 ? 75 : 0))', 5, 0, 3),
    ('exit 75', 2, 75, 3),
    ('exit 75', 0, 75, 1),
    ('exit 65', 5, 65, 1),
    ('exit $((n < 2 ? 75 : 2))', 5, 2, 2),
    ('kill -9 $$', 5, 137, 1),
  ],
)
def test_only_75_starts_again(env, tmp_path, body, restarts, status, times):
  process = worker(env, tmp_path, body, LMJAX_RESTARTS=str(restarts))
  assert process.wait(30) == status
  assert starts(tmp_path) == ['-m lmjax.main --config=a b --workdir=w'] * times


def test_a_stop_is_handed_down_and_final(env, tmp_path):
  body = 'trap "sleep 0.3; exit 75" TERM\nwhile true; do sleep 0.1; done'
  process = worker(env, tmp_path, body, LMJAX_RESTARTS='5')
  end = time.monotonic() + 20
  while not starts(tmp_path) and time.monotonic() < end:
    time.sleep(0.05)
  time.sleep(0.2)
  process.send_signal(signal.SIGTERM)
  assert process.wait(20) == 75
  assert len(starts(tmp_path)) == 1


@pytest.mark.parametrize('times', ['-1', 'many'])
def test_a_number_of_restarts_that_is_none_is_refused(env, tmp_path, times):
  # 75 would have a scheduler start it for ever.
  assert worker(env, tmp_path, 'exit 0', LMJAX_RESTARTS=times).wait(20) == 2
  assert not starts(tmp_path)


# ------------------------------------------------------------------ Slurm


SRUN = '''#!{python}
"""srun on one machine: starts what follows the flags as two tasks, ends as the worst of them."""
import os, subprocess, sys
words = sys.argv[1:]
while words[0].startswith('--'):
  key = words.pop(0).split('=')[0]
  assert key in ('--kill-on-bad-exit', '--wait'), key
more = dict(SLURM_STEP_NUM_TASKS='2', SLURM_STEP_TASKS_PER_NODE='1(x2)', SLURM_LOCALID='0')
tasks = [
  subprocess.Popen(words, env=os.environ | more | dict(SLURM_PROCID=str(i))) for i in range(2)
]
sys.exit(max(t.wait() for t in tasks))
'''


def srun(folder, text):
  tool = folder / 'srun'
  tool.write_text(text.format(python=sys.executable))
  tool.chmod(0o755)


def batch(env, folder, words, **more):
  """The script as slurmd runs it: a copy of it, with the arguments that sbatch was given."""
  copy = folder / 'slurm_script'
  copy.write_text((LAUNCH / 'slurm.sbatch').read_text())
  copy.chmod(0o755)
  more = {**SLURM, 'LMJAX_PYTHON': sys.executable, **more}
  return subprocess.run(
    [copy, LAUNCH / 'worker.sh', *words],
    env={**env, **more},
    cwd=folder,
    capture_output=True,
    text=True,
    timeout=300,
  )


def requeued(env):
  return [c['rest'] for c in _tools.calls(env) if c['command'] == 'scontrol requeue']


@pytest.mark.parametrize(
  'status, more, queued',
  [
    (75, {}, [['41']]),
    (75, dict(SLURM_RESTART_COUNT='3', LMJAX_REQUEUES='3'), []),
    (0, {}, []),
    (2, {}, []),
    (65, {}, []),
    (137, {}, []),
  ],
)
def test_a_job_is_queued_again_for_75_alone(env, tmp_path, status, more, queued):
  srun(tmp_path, f'#!/bin/bash\nexit {status}\n')
  assert batch(env, tmp_path, ['--config=a'], **more).returncode == status
  assert requeued(env) == queued


@pytest.mark.slow
def test_two_tasks_of_a_job_train_one_run(env, tmp_path):
  srun(tmp_path, SRUN)
  train = _runs.texts(tmp_path)
  words = _runs.words(tmp_path / 'w', train, mesh__data=-1, steps=2, checkpoint_every=2)
  flags = '--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0'
  more = dict(XLA_FLAGS=flags, JAX_PLATFORMS='cpu', PYTHONPATH=str(ROOT))
  out = batch(env, tmp_path, words, **more, JAX_COORDINATOR_PORT=str(_processes.port()))
  assert out.returncode == 0, out.stderr[-3000:]
  assert '2 cpu device(s)' in out.stderr
  assert [m['step'] for m in read_metrics(tmp_path / 'w') if m['kind'] == 'train'] == [1, 2]
  assert (tmp_path / 'w' / 'checkpoints' / '2' / 'manifest.json').exists()
  assert not requeued(env)


def test_the_job_asks_for_what_the_script_needs():
  text = (LAUNCH / 'slurm.sbatch').read_text()
  asked = dict.fromkeys(line.split()[1] for line in text.splitlines() if line.startswith('#SBATCH'))
  for word in asked:
    key, _, value = word.removeprefix('--').partition('=')
    known = _tools.ACCEPTED['sbatch'][0].split()
    assert key in known and bool(value) != (key in _tools.NO_VALUE), word
  assert '--requeue' in asked and '--signal=TERM@300' in asked
  assert os.access(LAUNCH / 'slurm.sbatch', os.X_OK)
