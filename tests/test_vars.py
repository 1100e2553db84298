"""Variables that are not trained ride in the state, through scanned layers, micro-batches and the
guard, those of backward passes as well; outside parts are named in configs.
"""

import pathlib
import sys

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import build
from lmjax import config
from lmjax.nn import params
from lmjax.parallel.facts import Fact

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


@jax.custom_vjp
def observed(x, slopes):
  """x. Backward: slopes <- slopes + sum of dx over tokens."""
  return x


observed.defvjp(lambda x, s: (x, s), lambda s, dx: (dx, s + dx.sum(tuple(range(dx.ndim - 1)))))


class Observing(nn.Module):
  """x + b; the sums of slopes in `backward` are therefore what b gets as its gradient."""

  @nn.compact
  def __call__(self, x, ctx):
    b = params.param(self, 'bias', x.shape[-1:], Fact((None,), (), 'bias'), ctx.scheme)
    slopes = self.variable('backward', 'slopes', jnp.zeros, x.shape[-1:], jnp.float32)
    return observed(x + b, slopes.value)


REPEATS = {
  'block*3': {'segment_0': 3},
  'block + shared(block)*2': {'segment_0': 1, 'segment_1': 2},
}


@pytest.mark.parametrize('remat', ['none', 'full'])
@pytest.mark.parametrize('stack', REPEATS)
def test_every_repeat_of_a_layer_has_its_own_state_of_the_backward_pass(stack, remat):
  """Also where weights are shared: the gradient of a shared weight is the sum over its uses, that
  of the state of a backward pass must not be.
  """
  how = dict(norm=f'{__name__}:Observing()', final_norm='rms_norm()', stack=stack, remat=remat)
  how |= dict(init='fan_in(embed=1.0)')
  more = [(f'model.{k}', v) for k, v in how.items()]
  run = make(*more, ('optim', 'sgd(momentum=0.0)'), ('peak_lr', '1.0'), ('schedule', 'constant()'))
  before = run.init(jax.random.key(0))
  after, metrics = jax.jit(run.step)(before, batch(run), jax.random.key(1))
  assert set(after.vars) == {'backward'} and metrics['applied'][0] == 1
  changes = jax.tree.map(lambda a, b: (a - b) * metrics['loss'][1], before.params, after.params)
  for name, segment in after.vars['backward'].items():
    for norm, found in segment['0_block'].items():
      slopes, change = found['slopes'], changes[name]['0_block'][norm]['bias']
      shared = name == 'segment_1'
      assert change.ndim == (1 if shared else 2)
      np.testing.assert_allclose(slopes.sum(0) if shared else slopes, change, rtol=1e-4, atol=1e-5)
      assert slopes.shape == (REPEATS[stack][name], 16)
      assert np.all(np.abs(slopes).max(-1) > 1e-3)
      assert len(slopes) == 1 or np.abs(slopes[0] - slopes[1]).max() > 1e-3


class Writing(nn.Module):
  """Assigns what only a cotangent may renew: it would be dropped without a word."""

  @nn.compact
  def __call__(self, x, ctx):
    seen = self.variable('backward', 'seen', jnp.zeros, (), jnp.float32)
    seen.value = seen.value + 1
    return x


def test_the_state_of_backward_passes_cannot_be_assigned():
  with pytest.raises(flax.errors.ModifyScopeVariableError, match='"backward" is immutable'):
    make(('model.norm', f'{__name__}:Writing()'))
