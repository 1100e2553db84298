"""Caches of a stack with unlike segments, and variables that are not trained, through the scan."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import _table
from lmjax import registry
from lmjax.nn import stack

T, B = _table.STEPS, _table.BATCH
HOW = dict(
  stack='full + (local, full)*2 + shared(local)*2',
  blocks__full__mixer='gqa(head_dim=8, kv_heads=2)',
  blocks__local__mixer='gqa(head_dim=8, window=3)',
)


def test_caches_are_stacked_like_the_segments():
  net = _table.model(**HOW)
  cache = net.init_cache(registry.make('cache', 'full()'), B, 64)
  assert [len(c) for c in cache] == [1, 2, 1]
  assert cache[0][0].k_BSHK.shape == (1, B, 64, 2, 8)
  assert cache[1][0].k_BSHK.shape == (2, B, 64, 4, 8) and cache[1][1].k_BSHK.shape == (
    2,
    B,
    64,
    2,
    8,
  )
  assert cache[2][0].k_BSHK.shape == (2, B, 64, 4, 8)  # shared weights, but a cache for each use


@pytest.mark.parametrize('unroll', [1, 100])
def test_decoding_through_unlike_segments_equals_the_whole_row(unroll):
  net = _table.model(**HOW, unroll=unroll)
  params, tokens, ctx = (
    _table.model_params(**HOW),
    _table.batch(np.ones((B, T), int))['tokens'],
    _table.ctx(),
  )
  want = jax.jit(lambda p: net.apply(p, tokens, ctx).hidden_BTD)(params)
  step = jax.jit(lambda t, p_BT, cache: net.apply(params, t, ctx.replace(positions_BT=p_BT), cache))
  cache, got = net.init_cache(registry.make('cache', 'full()'), B, T), []
  for part in (slice(0, 5), slice(5, 10)):
    out = step(tokens[:, part], ctx.positions_BT[:, part], cache)
    cache, got = out.cache, got + [out.hidden_BTD]
  _table.close(jnp.concatenate(got, axis=1), want)


class Counter(nn.Module):
  """A feed-forward part that counts its calls in `vars`."""

  @nn.compact
  def __call__(self, x, ctx):
    seen = self.variable('vars', 'seen', lambda: jnp.zeros((), jnp.int32))
    if not self.is_initializing():
      seen.value = seen.value + 1 + jnp.asarray(ctx.depth, jnp.int32)
    return x * 0, {}


def test_variables_that_are_not_trained_ride_through_the_scan():
  net = _table.model(depth=3, blocks__block__ffn=f'{__name__}:Counter()')
  tokens = jnp.zeros((B, T), jnp.int32)
  variables = jax.eval_shape(lambda: net.init(jax.random.key(0), tokens, _table.ctx()))
  vars = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), {'vars': variables['vars']})
  params = _table.values({'params': variables['params']})
  _, new = jax.jit(lambda p, v: net.apply({**p, **v}, tokens, _table.ctx(), mutable=['vars']))(
    params, vars
  )
  np.testing.assert_array_equal(jax.tree.leaves(new)[0], [1, 2, 3])


def test_losses_are_summed_and_metrics_averaged_over_layers():
  reports = [
    {'a': jnp.array([1.0, 3.0]), 'loss/x': jnp.array([1.0, 3.0])},
    {'a': jnp.array([5.0]), 'loss/x': jnp.array([5.0])},
  ]
  assert {k: float(v) for k, v in stack.combine(reports).items()} == {'a': 3.0, 'loss/x': 9.0}
