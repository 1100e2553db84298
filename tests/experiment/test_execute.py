"""Real runs: a killed trial goes on, a diverging one is a result, a bad one says why."""

import json
import os
import sys
import threading
import time

import pytest

import _fake
from lmjax.experiment import Arm
from lmjax.experiment import execute
from lmjax.experiment import local
from lmjax.experiment import measures
from lmjax.experiment import trials

SMALL = _fake.TINY | {'log_every': 1, 'checkpoint_every': 5}


def trial(steps=20, optim='adam()', **changes):
  e = _fake.experiment(changes=SMALL | changes, baseline=Arm('a', {'optim': optim}, _fake.GRID))
  return trials.trial(e, 'cpu', e.baseline, {'peak_lr': 1e-2}, 1, steps)


def run(t, runs, **how):
  return execute.execute(t, runs, measures.final_loss, **how)


def test_a_trial_gives_its_record_and_is_not_run_twice(tmp_path):
  t = trial(steps=6)
  found = run(t, tmp_path, cpus=local.cores()[:1])
  assert found['status'] == 'done' and found['value'] == found['loss'] and found['attempts'] == 1
  assert found['tokens'] == 6 * 128 and found['state_bytes'] == pytest.approx(8, rel=0.01)
  assert 0 < found['cpu_seconds'] and found['memory'] > 10**7 and found['step_time'] > 0
  assert 'host' not in found['versions'] and found['versions']['jax']
  json.dumps(found)
  before = (execute.folder(tmp_path, t) / 'outcome.json').stat().st_mtime_ns
  assert run(t, tmp_path) == found
  assert (execute.folder(tmp_path, t) / 'outcome.json').stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_killed_trial_goes_on_from_its_checkpoint(tmp_path):
  t, stopping, killed = trial(steps=120), execute.Stopping(), []

  def kill():
    while execute.last_step(execute.folder(tmp_path, t)) < 20:
      time.sleep(0.01)
    for process in list(stopping._running):
      process.kill()
      killed.append(process.pid)

  thread = threading.Thread(target=kill)
  thread.start()
  found = run(t, tmp_path, stopping=stopping)
  thread.join()
  straight = run(t, tmp_path / 'straight')
  assert len(killed) == 1 and found['status'] == 'done' and found['attempts'] == 2
  assert found['loss'] == straight['loss'] and straight['attempts'] == 1
  assert 'resumed at step' in (execute.folder(tmp_path, t) / 'log.txt').read_text()


def test_told_to_stop_it_saves_and_goes_on_later(tmp_path):
  t, stopping = trial(steps=3000), execute.Stopping()

  def stop():
    while execute.last_step(execute.folder(tmp_path, t)) < 5:
      time.sleep(0.01)
    stopping.stop()

  threading.Thread(target=stop).start()
  found = run(t, tmp_path, stopping=stopping)
  assert found['status'] == 'stopped' and found['attempts'] == 1
  assert 'stopped by SIGTERM' in (execute.folder(tmp_path, t) / 'log.txt').read_text()


def test_a_run_that_breaks_down_has_diverged(tmp_path, monkeypatch):
  monkeypatch.setenv('PYTHONPATH', os.path.dirname(_fake.__file__))
  t = trial(steps=60, optim='_fake:nan()', **{'bad_steps.limit': 3})
  found = run(t, tmp_path)
  assert found['status'] == 'diverged' and found['value'] is None and found['attempts'] == 1
  assert 'refused' in found['message']


def test_a_trial_that_cannot_run_says_why_and_is_tried_again(tmp_path):
  t = trial(steps=6, **{'data.train': 'text(path="absent.txt")'})
  found = run(t, tmp_path)
  assert found['status'] == 'failed' and found['attempts'] == 1
  assert 'status 2: lmjax: ' in found['message'] and 'absent.txt' in found['message']
  assert run(t, tmp_path)['attempts'] == 2


def test_a_run_that_dies_at_once_is_not_started_for_ever(tmp_path, monkeypatch):
  monkeypatch.setattr(trials.Trial, 'words', lambda self, workdir, before: ['--list'])
  dies = 'import os, sys; os.kill(os.getpid(), 9)'
  fake = tmp_path / 'python'
  fake.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{dies}"\n')
  fake.chmod(0o755)
  monkeypatch.setattr(sys, 'executable', str(fake))
  found = run(trial(), tmp_path)
  assert found['status'] == 'failed' and found['attempts'] == execute.ATTEMPTS
  assert found['message'].startswith('status -9')


def test_the_local_engine_runs_several_on_cores_of_their_own(tmp_path, monkeypatch):
  seen = []

  def one(trial, runs, measure, cpus, stopping):
    seen.append((trial.steps, tuple(cpus)))
    time.sleep(0.05)
    return dict(status='done')

  monkeypatch.setattr(execute, 'execute', one)
  monkeypatch.setattr(local, 'cores', lambda: [3, 5, 7])
  made = [trial(steps=n) for n in (5, 6, 7, 8)]
  ended = dict((t.steps, r) for t, r in local.Local().run(made, tmp_path, None))
  assert set(ended) == {5, 6, 7, 8} and {c for _, c in seen} <= {(3,), (5,), (7,)}
  assert len({c for _, c in seen}) == 3
