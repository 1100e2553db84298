"""Where norms stand, in whole models: exact equivalences between residual parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import _table
from lmjax import build
from lmjax import config
from lmjax import registry

DEPTH = 4
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, _table.VOCAB, (2, _table.STEPS)))


def model(residual, norm='rms_norm()', **more):
  how = dict(depth=DEPTH, blocks__block__residual=residual, blocks__block__norm=norm)
  return _table.model(**how, final_norm=norm, **more)


def hidden(net, params):
  return jax.jit(lambda p: net.apply(p, TOKENS, _table.ctx()).hidden_BTD)(params)


def params(net, seed=0):
  return _table.values(_table.abstract(net, TOKENS, _table.ctx()), seed=seed)


def test_blocks_that_disagree_about_the_stream_are_refused():
  """Pre-RMSNorm behind plain layers would meet a stream with a mean, and rms norm is no layer norm
  there.
  """
  c = config.load('quickstart', [('model.stack', 'block + other*3')])
  with c.unlocked():
    c.model.blocks.other = config.block()
  c.model.blocks.other.residual = 'pre_rmsnorm()'
  with pytest.raises(
    ValueError, match='blocks.other.residual=pre_rmsnorm.. wants a stream that is'
  ):
    build.build(config.resolve(c))


@pytest.mark.parametrize('unroll', [1, DEPTH])
@pytest.mark.parametrize('alpha, stack', [(0.25, 'post + pre*3'), (0.74, 'post*2 + pre*2')])
def test_mix_ln_is_post_layers_and_then_pre_layers(alpha, stack, unroll):
  mixed = model(f'mix_ln(alpha={alpha})', unroll=unroll)
  own = params(mixed)
  layers = own['params']['segment_0']['0_block']
  posts = int(stack[5]) if stack[4] == '*' else 1
  cut = lambda a, b: jax.tree.map(lambda x: x[a:b], layers)
  rest = {k: v for k, v in own['params'].items() if k != 'segment_0'}
  apart = {
    **rest,
    'segment_0': {'0_post': cut(0, posts)},
    'segment_1': {'0_pre': cut(posts, DEPTH)},
  }
  blocks = dict(blocks__pre__residual='pre()', blocks__post__residual='post()')
  blocks |= dict(blocks__pre__mixer='gqa(head_dim=8)', blocks__post__mixer='gqa(head_dim=8)')
  other = _table.model(stack=stack, final_norm='rms_norm()', **blocks)
  _table.close(hidden(mixed, own), hidden(other, {'params': apart}), 1e-6)


@pytest.mark.parametrize('alpha, residual', [(0.0, 'pre()'), (0.2, 'pre()'), (1.0, 'post()')])
def test_mix_ln_at_its_ends_is_pre_and_post_to_the_bit(alpha, residual):
  mixed, plain = model(f'mix_ln(alpha={alpha})'), model(residual)
  own = params(plain)
  assert jax.tree.structure(own) == jax.tree.structure(params(mixed))
  _table.same(hidden(mixed, own), hidden(plain, own))


@pytest.mark.parametrize('unroll', [1, DEPTH])
def test_layernorm_scaling_folded_into_gains_is_pre(unroll):
  scaled, plain = model('layernorm_scaling()', unroll=unroll), model('pre()')
  own = params(scaled)
  root = np.sqrt(np.arange(1, DEPTH + 1))[:, None]
  fold = lambda path, x: x / root if 'norm_' in jax.tree_util.keystr(path) else x
  layers = jax.tree_util.tree_map_with_path(fold, own['params']['segment_0'])
  folded = {'params': {**own['params'], 'segment_0': layers}}
  _table.close(hidden(scaled, own), hidden(plain, folded), 1e-6)


def test_a_stream_of_mean_0_makes_rms_norm_a_layer_norm():
  """Function and gradients, so that training is the same as well."""
  plain, centred = model('pre()', 'layer_norm(bias=False, eps=1e-06)'), model('pre_rmsnorm()')
  own = params(plain)
  assert jax.tree.structure(own) == jax.tree.structure(params(centred))
  _table.close(hidden(centred, own), hidden(plain, own), 1e-5)
  slope = lambda net: jax.jit(
    jax.grad(lambda p: jnp.sum(jnp.sin(net.apply(p, TOKENS, _table.ctx()).hidden_BTD)))
  )(own)
  _table.trees_close(slope(centred), slope(plain), 1e-4)


def test_without_the_projection_rms_norm_is_not_a_layer_norm():
  plain, rms = model('pre()', 'layer_norm(bias=False, eps=1e-06)'), model('pre()')
  own = params(plain)
  assert not np.allclose(hidden(rms, own), hidden(plain, own), atol=1e-2)


def test_peri_ln_does_not_see_the_size_of_what_a_sublayer_writes():
  net = model('peri_ln()')
  own = params(net)
  larger = lambda path, x: 100 * x if "['out']" in jax.tree_util.keystr(path) else x
  scaled = jax.tree_util.tree_map_with_path(larger, own)
  _table.close(hidden(net, scaled), hidden(net, own), 1e-3)
  slope = jax.jit(
    jax.grad(lambda p: jnp.sum(jnp.sin(net.apply(p, TOKENS, _table.ctx()).hidden_BTD)))
  )
  out = lambda tree: tree['params']['segment_0']['0_block']['mixer']['out']['kernel']
  _table.close(100 * out(slope(scaled)), out(slope(own)), 1e-2)


def test_decoding_token_by_token_sees_the_depth():
  net = model('layernorm_scaling()')
  own = params(net)
  cache, got = net.init_cache(registry.make('cache', 'full()'), 2, _table.STEPS), []
  ctx = _table.ctx()
  step = jax.jit(lambda t, p_BT, cache: net.apply(own, t, ctx.replace(positions_BT=p_BT), cache))
  for t in range(3):
    out = step(TOKENS[:, t : t + 1], ctx.positions_BT[:, t : t + 1], cache)
    cache, got = out.cache, got + [out.hidden_BTD]
  _table.close(jnp.concatenate(got, axis=1), hidden(net, own)[:, :3])
