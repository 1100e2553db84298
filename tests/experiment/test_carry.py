"""Records over a change of code: kept where the programs are the same, else stale as before."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
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


def _of(f):
  x_33 = jnp.ones((3, 3))
  return program.dataflow(jax.jit(f).lower(x_33, x_33).compiler_ir())


def _loop(x, y, a, times=jnp.multiply):
  return jax.lax.scan(lambda c, t: (times(c, t) + a, c), x[0], y)[1]


def test_order_names_and_dead_code_are_no_part_of_a_program():
  def f(x, y):
    a, b = jnp.sum(x * y), jnp.sum(x, 0)
    jnp.sin(x)
    return a, b, jax.jit(jnp.cos)(_loop(x, y, a))

  def g(x, y):
    b, a = jnp.sum(x, 0), jnp.sum(x * y)
    return jnp.sum(x * y), b, jax.jit(lambda z: jnp.cos(z))(_loop(x, y, a))

  assert _of(f) == _of(g)


def test_the_order_of_what_branches_end_with_is_no_part_of_a_program():
  def f(swap: bool, other: bool = False):
    def one(x, y):
      found = (x + y, x * y) if other else (x - y, x * y)
      return found[::-1] if swap else found

    def two(x, y):
      return (y, x)[::-1] if swap else (y, x)

    def run(x, y):
      found = jax.lax.cond(x[0, 0] > 0, one, two, x, y)
      return found[::-1] if swap else found

    return _of(run)

  assert f(False) == f(True)
  assert f(False) != f(False, other=True)


CHANGES = {
  'operands': lambda x, y: (jnp.cos(_loop(y, x, jnp.sum(x * y))), x),
  'outputs': lambda x, y: (x, jnp.cos(_loop(x, y, jnp.sum(x * y)))),
  'constant': lambda x, y: (jnp.cos(_loop(x, y, jnp.sum(x * y) * 2)), x),
  'attribute': lambda x, y: (jnp.cos(_loop(x, y, jnp.sum(jnp.sum(x * y, 0)))), x),
  'operation': lambda x, y: (jnp.sin(_loop(x, y, jnp.sum(x * y))), x),
  'loop': lambda x, y: (jnp.cos(_loop(x, y[::-1], jnp.sum(x * y))), x),
  'body': lambda x, y: (jnp.cos(_loop(x, y, jnp.sum(x * y), jnp.add)), x),
  'called': lambda x, y: (jax.jit(lambda z: jnp.cos(z) + 0 * z)(_loop(x, y, jnp.sum(x * y))), x),
  'effect': lambda x, y: (
    jax.debug.callback(lambda: None),
    jnp.cos(_loop(x, y, jnp.sum(x * y))),
    x,
  )[1:],
}


def test_what_an_attribute_names_is_a_program():
  def f(x, y):
    return jax.lax.composite(lambda x: x + 1, 'own.name')(x * y)

  def g(x, y):
    return jax.lax.composite(lambda x: x + 2, 'own.name')(x * y)

  assert _of(f) != _of(g)
  assert _of(f) == _of(lambda x, y: f(x, y))


@pytest.mark.parametrize('change', CHANGES)
def test_what_is_computed_is_a_program(change):
  assert _of(CHANGES[change]) != _of(lambda x, y: (jnp.cos(_loop(x, y, jnp.sum(x * y))), x))


def test_which_result_of_an_operation_is_taken_is_a_program():
  both = lambda x, y: jax.lax.fori_loop(0, 3, lambda i, c: (c[1], 2 * c[0]), (x, y))
  assert _of(lambda x, y: both(x, y)[0]) != _of(lambda x, y: both(x, y)[1])


def test_addresses_are_no_part_of_a_program():
  assert program.normal('loc("<lambda>" at 0x7fffaa120)') == program.normal(
    'loc("<x>" at 0x7ffabc)'
  )


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
