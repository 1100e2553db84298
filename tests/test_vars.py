"""Variables that are not trained ride in the state, through scanned layers, micro-batches and the
guard; outside parts are named in configs.
"""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import build
from lmjax import config

HERE = pathlib.Path(__file__).parent
SMALL = [
  ('model.width', '16'),
  ('model.depth', '3'),
  ('data.length', '8'),
  ('batch_tokens', '32'),
  ('model.mixer.head_dim', '8'),
  ('model.norm', 'outside.running_norm:RunningNorm(momentum=0.5)'),
]


@pytest.fixture(autouse=True)
def outside(monkeypatch):
  monkeypatch.syspath_prepend(str(HERE))
  yield
  sys.modules.pop('outside.running_norm', None)


def make(*more):
  return build.build(config.resolve(config.load('quickstart', SMALL + list(more))))


def batch(run, seed=0):
  tokens = (
    np.random.default_rng(seed)
    .integers(0, 256, (run.rows, run.length + run.lookahead))
    .astype(np.int32)
  )
  ones = np.ones_like(tokens)
  return jax.tree.map(
    jnp.asarray,
    dict(tokens=tokens, segments=ones, positions=np.cumsum(ones, 1, dtype=np.int32) - 1),
  )


def means(state):
  return jax.tree.leaves(state.vars)


def test_each_layer_has_its_own_and_training_moves_it():
  run = make()
  state = run.init(jax.random.key(0))
  assert (
    set(state.vars) == {'vars'}
    and all(m.shape == (3, 16) for m in means(state))
    and len(means(state)) == 2
  )
  after, _ = jax.jit(run.step)(state, batch(run), jax.random.key(1))
  for m in means(after):
    assert np.all(np.abs(m).max(axis=1) > 0)
    assert not np.allclose(m[0], m[1])
  assert not any(
    'mean' in jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(after.opt)
  )


def test_micro_batches_each_update_them():
  """After two micro-batches the running mean has taken two steps, not one."""
  run, two = make(), make(('micro_batches', '2'))
  state = run.init(jax.random.key(0))
  rows = jax.tree.map(lambda a: jnp.concatenate([a[:2], a[:2]]), batch(run))  # both halves alike
  once, _ = jax.jit(run.step)(state, rows, jax.random.key(1))
  twice, _ = jax.jit(two.step)(state, rows, jax.random.key(1))
  first = [m[0] for m in means(once)]  # the first layer's input is the same in both halves
  second = [m[0] for m in means(twice)]
  assert any(np.abs(np.asarray(a) - np.asarray(b)).max() > 1e-6 for a, b in zip(first, second))


def test_evaluation_and_refused_steps_leave_them():
  run = make()
  state, _ = jax.jit(run.step)(run.init(jax.random.key(0)), batch(run), jax.random.key(1))
  out = run.objective.loss(state.params, state.vars, batch(run), jax.random.key(0), train=False)
  assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(out.vars), means(state)))
  bad = state.replace(params=jax.tree.map(lambda p: p.at[(0,) * p.ndim].set(jnp.nan), state.params))
  after, metrics = jax.jit(run.step)(bad, batch(run, 1), jax.random.key(1))
  assert float(metrics['applied'][0]) == 0 and int(after.skipped) == 1 and int(after.step) == 2
  assert all(np.array_equal(a, b) for a, b in zip(means(after), means(state)))
