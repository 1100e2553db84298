"""The contract of residuals: the layer equals its equation, signals grow over depth as the wiring
says, aux and cache pass through.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import _table
from lmjax import registry
from lmjax.nn import params


class Mixer(nn.Module):
  """y = mean over time + x W; counts its calls in the cache."""

  @nn.compact
  def __call__(self, x, ctx, cache=None):
    y = params.dense(ctx, 'w', dict(embed=x.shape[-1]), dict(mlp=x.shape[-1]), role='residual')(x)
    return (
      y,
      None if cache is None else cache + 1,
      {'load': jnp.mean(x), 'loss/balance': jnp.sum(y)},
    )


class Ffn(nn.Module):
  @nn.compact
  def __call__(self, x, ctx):
    y = params.dense(ctx, 'w', dict(embed=x.shape[-1]), dict(mlp=x.shape[-1]), role='residual')(x)
    return y, {'load': jnp.max(x), 'loss/balance': -jnp.sum(y)}


def part(kind: str, obj: Any) -> registry.Part:
  return registry.Part(kind, obj.__name__.lower(), obj, ())


# x, and functions n1, n2 (norms), m (mixer), f (ffn) -> the layer's output
def pre(x, n1, n2, m, f, a):
  x = x + m(n1(x))
  return x + f(n2(x))


def post(x, n1, n2, m, f, a):
  x = n1(x + m(x))
  return n2(x + f(x))


def parallel(x, n1, n2, m, f, a):
  return x + m(n1(x)) + f(n1(x) if a['shared_norm'] else n2(x))


EQUATIONS = dict(pre=pre, post=post, parallel=parallel)
GROWTH = dict(
  pre='linear', parallel='linear', post='flat'
)  # variance of the stream over depth at init
each = pytest.mark.parametrize('spec', _table.SPECS['residual'])


def layer(spec, norm='layer_norm()', **more):
  handle = registry.make(
    'residual',
    spec,
    mixer=part('mixer', Mixer),
    ffn=part('ffn', Ffn),
    norm=registry.make('norm', norm),
  )
  return handle(parent=None, **more)


@functools.cache
def instance(spec):
  module, x = layer(spec), _table.normal(2, 3, 8)
  return module, _table.values(_table.abstract(module, x, _table.ctx()))


def test_no_part_is_missing():
  assert not _table.uncovered('residual')
  assert set(EQUATIONS) == set(GROWTH) == set(registry.names('residual'))


def layer_norm(x, p):
  y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
  return y * p['scale'] + p['bias']


@each
def test_equals_its_equation_in_float64(spec):
  module, variables = instance(spec)
  x = _table.normal(2, 3, 8, seed=3, scale=2.0)
  y, cache, _ = module.apply(variables, x, _table.ctx())
  p = _table.numpy64(variables['params'])
  want = EQUATIONS[_table.name(spec)](
    np.asarray(x, np.float64),
    lambda z: layer_norm(z, p['norm_mixer']),
    lambda z: layer_norm(z, p['norm_ffn']),
    lambda z: z @ p['mixer']['w']['kernel'],
    lambda z: z @ p['ffn']['w']['kernel'],
    _table.arguments('residual', spec),
  )
  _table.close(y, want, 2e-6)
  assert cache is None


@each
def test_no_parameter_is_made_that_the_equation_does_not_use(spec):
  module, variables = instance(spec)
  x = _table.normal(2, 3, 8, seed=3)
  grads = jax.grad(lambda v: jnp.sum(jnp.sin(module.apply(v, x, _table.ctx())[0])))(variables)
  for path, g in jax.tree_util.tree_leaves_with_path(grads):
    assert np.any(np.asarray(g) != 0), f'{jax.tree_util.keystr(path)} has no gradient'


@each
def test_reports_of_both_sublayers_are_joined_and_losses_keep_their_prefix(spec):
  module, variables = instance(spec)
  _, _, aux = module.apply(variables, _table.normal(2, 3, 8, seed=3), _table.ctx())
  assert set(aux) == {'mixer/load', 'ffn/load', 'loss/mixer/balance', 'loss/ffn/balance'}
  assert float(aux['loss/mixer/balance']) != float(aux['loss/ffn/balance'])


@each
def test_the_cache_goes_to_the_mixer_and_comes_back(spec):
  module, variables = instance(spec)
  _, cache, _ = module.apply(variables, _table.normal(2, 3, 8, seed=3), _table.ctx(), jnp.int32(41))
  assert int(cache) == 42


@each
def test_leaving_undoes_entering(spec):
  x, module = _table.normal(2, 3, 8), layer(spec)
  _table.same(module.leave(module.enter(x)), x)


def variances(spec, depth=32, width=64):
  """Variance of the stream after each layer at init, mixer and ffn being matrices of gain 1."""
  module, x = layer(spec), _table.normal(4, 16, width)
  ctx = _table.ctx()
  step = jax.jit(lambda v, x: module.apply(v, x, ctx)[0])
  boxed, out = _table.abstract(module, x, ctx), [1.0]
  for i in range(depth):
    x = step(_table.values(boxed, seed=10 * i, spread=0.0), x)
    out.append(float(jnp.var(x)))
  return np.array(out)


@each
def test_variance_over_depth_at_init(spec):
  v = variances(spec)
  if GROWTH[_table.name(spec)] == 'linear':  # each sublayer adds about 1
    line = 1 + 2 * np.arange(len(v))
    assert np.all(np.abs(v / line - 1) < 0.4), v
  else:
    assert np.all(np.abs(v - 1) < 0.05), v


@each
def test_zero_sublayers_leave_the_stream_alone_unless_it_is_normed(spec):
  module, variables = instance(spec)
  silent = jax.tree_util.tree_map_with_path(
    lambda path, a: a * 0 if 'kernel' in jax.tree_util.keystr(path) else a, variables
  )
  x = _table.normal(2, 3, 8, seed=3)
  y = module.apply(silent, x, _table.ctx())[0]
  assert np.array_equal(y, x) == (GROWTH[_table.name(spec)] == 'linear')


@each
def test_dropout_acts_in_training_only(spec):
  call = registry.make('residual', spec)
  if 'dropout' not in dict(call.args):
    pytest.skip('this residual has no dropout')
  plain, variables = instance(spec)
  module = registry.Part(
    'residual', call.name, call.obj, tuple({**dict(call.args), 'dropout': 0.4}.items())
  )(
    mixer=part('mixer', Mixer),
    ffn=part('ffn', Ffn),
    norm=registry.make('norm', 'layer_norm()'),
    parent=None,
  )
  x = _table.normal(2, 3, 8, seed=3)
  calm = plain.apply(variables, x, _table.ctx())[0]
  _table.same(module.apply(variables, x, _table.ctx())[0], calm)

  def noisy(seed):
    return module.apply(
      variables, x, _table.ctx(train=True), rngs={'dropout': jax.random.key(seed)}
    )[0]

  assert not np.allclose(noisy(0), calm) and not np.allclose(noisy(0), noisy(1))
  _table.same(noisy(0), noisy(0))


@pytest.mark.parametrize('spec', ['pre(dropout=0.4)', 'parallel(dropout=0.4)'])
def test_dropout_keeps_the_mean_and_drops_the_declared_share(spec):
  module, x = layer(spec), _table.normal(1, 4, 2000)
  ctx = _table.ctx(train=True)
  variables = _table.values(_table.abstract(module, x, ctx.replace(train=False)))
  variables['params']['ffn'] = jax.tree.map(jnp.zeros_like, variables['params']['ffn'])
  added = module.apply(variables, x, ctx, rngs={'dropout': jax.random.key(1)})[0] - x
  full = module.apply(variables, x, ctx.replace(train=False))[0] - x
  kept = np.asarray(added != 0)
  assert abs(kept.mean() - 0.6) < 0.03
  np.testing.assert_allclose(
    np.asarray(added)[kept], np.asarray(full)[kept] / 0.6, rtol=1e-3, atol=1e-4
  )
