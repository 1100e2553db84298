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

import _rows
import _table
from lmjax import registry
from lmjax import specs
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


# x, and functions n(name) -> a norm, m (mixer), f (ffn), arguments, number of the layer (from 1)
# -> the layer's output
def pre(x, n, m, f, a, layer):
  x = x + m(n('norm_mixer')(x))
  return x + f(n('norm_ffn')(x))


def post(x, n, m, f, a, layer):
  x = n('norm_mixer')(x + m(x))
  return n('norm_ffn')(x + f(x))


def parallel(x, n, m, f, a, layer):
  return x + m(n('norm_mixer')(x)) + f(n('norm_mixer' if a['shared_norm'] else 'norm_ffn')(x))


def peri_ln(x, n, m, f, a, layer):
  x = x + n('norm_mixer_out')(m(n('norm_mixer')(x)))
  return x + n('norm_ffn_out')(f(n('norm_ffn')(x)))


def layernorm_scaling(x, n, m, f, a, layer):
  x = x + m(n('norm_mixer')(x) / np.sqrt(layer))
  return x + f(n('norm_ffn')(x) / np.sqrt(layer))


def mix_ln(x, n, m, f, a, layer):
  return (post if layer <= a['alpha'] * DEPTH else pre)(x, n, m, f, a, layer)


def pre_rmsnorm(x, n, m, f, a, layer):
  centred = lambda y: y - y.mean(-1, keepdims=True)
  x = x + centred(m(n('norm_mixer')(x)))
  return x + centred(f(n('norm_ffn')(x)))


def res_post(x, n, m, f, a, layer):
  x = x + n('norm_mixer')(m(x))
  return x + n('norm_ffn')(f(x))


def pre_ffn(x, n, m, f, a, layer):
  x = x + m(x)
  return x + f(n('norm_ffn')(x))


EQUATIONS = dict(
  res_post=res_post,
  pre_ffn=pre_ffn,
  pre=pre,
  post=post,
  parallel=parallel,
  peri_ln=peri_ln,
  layernorm_scaling=layernorm_scaling,
  mix_ln=mix_ln,
  pre_rmsnorm=pre_rmsnorm,
) | _rows.values('residual', 'equation')
DEPTH = 32
# Variance of the stream behind each layer at init, where each sublayer has gain 1.
LAYERS = np.arange(DEPTH + 1)
LINEAR, FLAT = 1 + 2.0 * LAYERS, 1.0 + 0 * LAYERS
GROWTH = {
  'pre': LINEAR,
  'parallel': LINEAR,
  'peri_ln': LINEAR,
  'res_post': LINEAR,
  'pre_rmsnorm': LINEAR,
  'pre_ffn': 2.0 ** (LAYERS + 1) - 1,
  'post': FLAT,
  'layernorm_scaling': 1 + 2 * np.cumsum([0.0, *1 / LAYERS[1:]]),
  'mix_ln': 1 + 2 * np.maximum(LAYERS - DEPTH // 4, 0.0),
  'mix_ln(alpha=0.0)': LINEAR,
  'mix_ln(alpha=1.0)': FLAT,
} | {name: growth(LAYERS) for name, growth in _rows.values('residual', 'growth').items()}
NORMED = ('post()', 'mix_ln(alpha=1.0)', 'peri_ln()', 'mix_ln()', 'res_post()')
each = pytest.mark.parametrize('spec', _table.SPECS['residual'])


def layer(spec, norm='layer_norm()', **more):
  handle = registry.make(
    'residual',
    spec,
    mixer=part('mixer', Mixer),
    ffn=part('ffn', Ffn),
    norm=registry.make('norm', norm),
    depth=DEPTH,
  )
  return handle(parent=None, **more)


@functools.cache
def instance(spec):
  module, x = layer(spec), _table.normal(2, 3, 8)
  return module, _table.values(_table.abstract(module, x, _table.ctx()))


def test_no_part_is_missing():
  assert not _table.uncovered('residual')
  assert set(EQUATIONS) == {_table.name(s) for s in GROWTH} == set(_table.alone('residual'))


def layer_norm(x, p):
  y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
  return y * p['scale'] + p['bias']


@pytest.mark.parametrize('depth', [0, 7, 8])
@each
def test_equals_its_equation_in_float64(spec, depth):
  module, variables = instance(spec)
  x = _table.normal(2, 3, 8, seed=3, scale=2.0)
  y, cache, _ = module.apply(variables, x, _table.ctx(depth=depth))
  p = _table.numpy64(variables['params'])
  want = EQUATIONS[_table.name(spec)](
    np.asarray(x, np.float64),
    lambda name: lambda z: layer_norm(z, p[name]),
    lambda z: z @ p['mixer']['w']['kernel'],
    lambda z: z @ p['ffn']['w']['kernel'],
    _table.arguments('residual', spec),
    depth + 1,
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
  half, module = jnp.round(4 * _table.normal(2, 3, 4)), layer(spec)
  x = jnp.concatenate([half, -half], axis=-1)  # some keep a stream of mean 0; exact in float32
  _table.same(module.leave(module.enter(x)), x)


def variances(spec, width=64):
  """Variance of the stream after each layer at init, mixer and ffn being matrices of gain 1."""
  module, x = layer(spec), _table.normal(4, 16, width)
  ctx = _table.ctx()
  step = jax.jit(lambda v, x, i: module.apply(v, x, ctx.replace(depth=i))[0])
  boxed, out = _table.abstract(module, x, ctx), [1.0]
  for i in range(DEPTH):
    x = step(_table.values(boxed, seed=10 * i, spread=0.0), x, i)
    out.append(float(jnp.var(x)))
  return np.array(out)


@each
def test_variance_over_depth_at_init(spec):
  v, want = variances(spec), GROWTH.get(spec, GROWTH[_table.name(spec)])
  bound = 0.05 if want is FLAT else 0.4
  assert np.all(np.abs(v / want - 1) < bound), v


@each
def test_zero_sublayers_leave_the_stream_alone_unless_something_is_normed(spec):
  module, variables = instance(spec)
  silent = jax.tree_util.tree_map_with_path(
    lambda path, a: a * 0 if 'kernel' in jax.tree_util.keystr(path) else a, variables
  )
  x = _table.normal(2, 3, 8, seed=3)
  y = module.apply(silent, x, _table.ctx())[0]
  assert np.array_equal(y, x) == (spec not in NORMED)


@each
def test_dropout_acts_in_training_only(spec):
  call = registry.make('residual', spec)
  if 'dropout' not in dict(call.args):
    pytest.skip('this residual has no dropout')
  plain, variables = instance(spec)
  module = layer(str(specs.Call(call.name, (*specs.call(spec).args, ('dropout', 0.4)))))
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
