"""Records over a change of code: kept where the programs are the same, else stale as before."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from lmjax.experiment import code
from lmjax.experiment import measures
from lmjax.experiment import program
from lmjax.experiment import results

ROOT = pathlib.Path(__file__).parents[2]
EXPERIMENT = """
import sys
sys.path.insert(0, {tests!r})
import _tiny


def get_experiment():
  return _tiny.experiment()
"""


def test_names_of_functions_are_no_part_of_a_program():
  a = 'call @_where(%0) call @clip(%1) loc("<lambda>" at 0x7fffaa120)'
  assert program.normal(a) == program.normal(a.replace('_where', '_other'))
  assert program.normal(a) != program.normal(a.replace('@clip', '@_where'))
  assert program.normal(a) != program.normal(a.replace('%1', '%0'))


class Repository:
  """The package and a small experiment with made-up results, in a repository of their own."""

  def __init__(self, path: pathlib.Path):
    self.path = path
    skip = shutil.ignore_patterns('__pycache__')
    for name in ('lmjax', 'configs'):
      shutil.copytree(ROOT / name, path / name, ignore=skip)
    self.folder = path / 'experiments' / 'x'
    self.folder.mkdir(parents=True)
    tests = str(ROOT / 'tests' / 'experiment')
    (self.folder / 'experiment.py').write_text(EXPERIMENT.format(tests=tests))
    self.commit('begun')
    wanted = [[arm, dict(peak_lr=1e-3), 0, 10] for arm in ('adamw', 'lion')]
    lines = self.run('-P', 'lmjax/experiment/program.py', 'experiments/x', 'cpu', given=wanted)
    records = [
      dict.fromkeys(results.FIELDS, 0)
      | dict(arm=arm, point=point, seed=seed, steps=steps, status='done', message='', versions={})
      | dict(measure=code.of_function(measures.final_loss))
      | {k: v for k, v in json.loads(line).items() if k != 'program'}
      for (arm, point, seed, steps), line in zip(wanted, lines)
    ]
    self.results({'scales': {'cpu': {'records': records}}})
    self.commit('results')

  def run(self, *words: str, given=None) -> list[str]:
    env = os.environ | {'PYTHONPATH': str(self.path)}
    done = subprocess.run(
      [sys.executable, *words],
      cwd=self.path,
      env=env,
      input=json.dumps(given),
      capture_output=True,
      text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()

  def commit(self, message: str) -> None:
    git = ['git', '-c', 'user.name=a', '-c', 'user.email=a@example.org']
    if not (self.path / '.git').exists():
      subprocess.run(['git', 'init', '-q', self.path], check=True)
    subprocess.run([*git, 'add', '-A'], cwd=self.path, check=True)
    subprocess.run([*git, 'commit', '-qm', message], cwd=self.path, check=True)

  def results(self, new=None) -> dict:
    path = self.folder / 'results.json'
    if new is not None:
      path.write_text(json.dumps(new))
    return {r['arm']: r for r in json.loads(path.read_text())['scales']['cpu']['records']}

  def carry(self) -> list[str]:
    return self.run('-m', 'lmjax.experiment', 'carry', 'experiments/x', '--since=HEAD')

  def edit(self, old: str, new: str) -> None:
    path = self.path / 'lmjax' / 'optim' / 'lion.py'
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which('git') is None, reason='needs git')
def test_what_computes_the_same_is_carried_over_and_the_rest_stays_stale(tmp_path):
  repository = Repository(tmp_path / 'code')
  before = repository.results()
  assert repository.carry()[-1].endswith('no stale records')

  repository.edit('b2: float = 0.99', 'b2: float = 0.99, unused: int = 0')
  assert 'carried over: 1' in repository.carry()
  after = repository.results()
  assert after['adamw'] == before['adamw']
  assert {k for k in after['lion'] if after['lion'][k] != before['lion'][k]} == {'identity', 'code'}
  assert repository.carry()[-1].endswith('no stale records')
  repository.commit('an argument more')

  repository.edit('optax.scale_by_lion(b1=b1', 'optax.scale_by_lion(b1=0.5 * b1')
  said = repository.carry()
  assert 'carried over: 0' in said
  assert said[-1] == 'still stale: 1: lion, 10 steps: computes something else now'
  assert repository.results() == after
  worktrees = subprocess.check_output(['git', 'worktree', 'list'], cwd=repository.path, text=True)
  assert len(worktrees.splitlines()) == 1
