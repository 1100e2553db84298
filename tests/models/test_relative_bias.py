"""A bias by distance that the layers of a stack share: one table, its gradient, decoding, distances
of T5, refusals. `tests/contracts` has the values of one layer, `test_on_meshes` meshes.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import _table
from lmjax import kinds
from lmjax import registry
from lmjax.models.mixers import relative_bias

B, T = _table.BATCH, _table.STEPS
SEGMENTS = np.array([[1, 1, 1, 2, 2, 2, 2, 2, 0, 0], [1] * T])
HOW = 'inner=gqa(head_dim=8, kv_heads=2), buckets=6, distance=5'
SHARED = dict(blocks__block__mixer=f'relative_bias({HOW})', position='none()')
OWN = dict(blocks__block__mixer=f'relative_bias({HOW}, shared=False)', position='none()')
LAYERS = 'segment_0', '0_block', 'mixer', 'bias'


def apart(params, shared):
  """The same parameters with a table in each layer."""
  out = jax.tree.map(lambda a: a, params)
  table = out.pop('shared_block')['table']
  mixer = dict(out['segment_0']['0_block']['mixer'])
  tables = jnp.broadcast_to(table, (shared.model.depth, *table.shape))
  out['segment_0'] = {'0_block': {**out['segment_0']['0_block'], 'mixer': mixer}}
  mixer['bias'] = {'table': tables}
  return out


def test_one_table_serves_all_layers_and_gets_the_sum_of_their_gradients():
  shared, own = _table.model(**SHARED), _table.model(**OWN)
  params = dict(_table.model_params(**SHARED)['params'])
  assert params['shared_block']['table'].shape == (6, 4)
  tokens, ctx = _table.batch(SEGMENTS)['tokens'], _table.ctx(segments=SEGMENTS)
  weights = _table.normal(B, T, _table.WIDTH)

  def value(net):
    return jax.value_and_grad(
      lambda p: jnp.sum(net.apply({'params': p}, tokens, ctx).hidden_BTD * weights)
    )

  one, grads = value(shared)(params)
  other, each = value(own)(apart(params, shared))
  np.testing.assert_allclose(one, other, rtol=1e-6)
  tables = each
  for key in (*LAYERS, 'table'):
    tables = tables[key]
  got = grads['shared_block']['table']
  assert np.ptp(tables, axis=0).max() > 1e-3 and float(jnp.abs(got).max()) > 0.1
  _table.close(got, tables.sum(0), 1e-5)


def test_decoding_looks_the_distances_up():
  net, params = _table.model(**SHARED), _table.model_params(**SHARED)
  tokens = _table.batch(np.ones((B, T), int))['tokens']
  want = net.apply(params, tokens, _table.ctx()).hidden_BTD
  cache, out = net.init_cache(registry.make('cache', 'full()'), B, T), []
  step = jax.jit(lambda t, c, cache: net.apply(params, t, c, cache))
  for i in range(T):
    places = jnp.full((B, 1), i, jnp.int32)
    found = step(tokens[:, i : i + 1], kinds.Ctx(places, jnp.ones((B, 1), jnp.int32)), cache)
    cache = found.cache
    out.append(found.hidden_BTD)
  np.testing.assert_allclose(jnp.concatenate(out, 1), want, atol=1e-5)


def test_tokens_that_were_left_out_keep_their_distances():
  net, params = _table.model(**SHARED), _table.model_params(**SHARED)
  tokens = _table.batch(np.ones((B, T), int))['tokens']
  ctx = _table.ctx()
  np.testing.assert_allclose(
    net.apply(params, tokens, ctx.replace(gaps=True)).hidden_BTD,
    net.apply(params, tokens, ctx).hidden_BTD,
    atol=1e-6,
  )
  wide = ctx.replace(positions_BT=ctx.positions_BT * 2, gaps=True)
  assert not np.allclose(
    net.apply(params, tokens, wide).hidden_BTD, net.apply(params, tokens, ctx).hidden_BTD, atol=1e-3
  )


def test_distances_of_t5():
  """32 buckets up to 128; where the next begins, from the formula with exact roots."""
  gaps = -np.arange(200)
  causal = relative_bias.bucket(gaps, 32, 128, causal=True)
  starts = [*range(16), *(math.ceil(16 * 8 ** (j / 16) - 1e-9) for j in range(16))]
  assert [int(np.argmax(causal == b)) for b in range(32)] == starts
  assert not relative_bias.bucket(-gaps, 32, 128, causal=True).any()
  both = relative_bias.bucket(gaps, 32, 128, causal=False)
  assert [int(np.argmax(both == b)) for b in range(16)] == [
    *range(8),
    *(8, 12, 16, 23, 32, 46, 64, 91),
  ]
  later = relative_bias.bucket(-gaps[1:], 32, 128, causal=False)
  np.testing.assert_array_equal(later, both[1:] + 16)


@pytest.mark.parametrize('buckets, distance', [(32, 128), (12, 17), (8, 1000)])
@pytest.mark.parametrize('causal', [True, False])
def test_distances_of_the_library(buckets, distance, causal):
  torch = pytest.importorskip('torch', reason='torch is in the extra test-heavy')
  t5 = pytest.importorskip('transformers.models.t5.modeling_t5', reason='as torch')
  gaps = np.arange(-3000, 3000)
  want = t5.T5Attention._relative_position_bucket(torch.tensor(gaps), not causal, buckets, distance)
  np.testing.assert_array_equal(relative_bias.bucket(gaps, buckets, distance, causal), want)


def test_in_a_model_with_positions_both_count():
  rope = _table.model(**SHARED | dict(position='rope()'))
  none, params = _table.model(**SHARED), _table.model_params(**SHARED)
  tokens, ctx = _table.batch(SEGMENTS)['tokens'], _table.ctx(segments=SEGMENTS)
  a, b = (m.apply(params, tokens, ctx).hidden_BTD for m in (rope, none))
  assert float(jnp.abs(a - b)[:, 1].max()) > 1e-3


@pytest.mark.parametrize(
  'spec, words',
  [
    ('relative_bias(inner=cross_attention())', 'inner=cross_attention'),
    ('relative_bias(inner=deltanet())', 'inner=deltanet'),
    ('relative_bias(inner=gqa(position=alibi()))', 'without a position of its own'),
    ('relative_bias(buckets=1)', 'buckets=1: a number from 2'),
    ('relative_bias(inner=gqa(causal=False), buckets=7)', 'buckets=7: a number from 4'),
    ('relative_bias(distance=16)', 'distance=16: more than 16'),
    ('relative_bias(inner=gqa(causal=False), distance=8)', 'distance=8: more than 8'),
  ],
)
def test_refusals(spec, words):
  with pytest.raises(ValueError, match=words):
    registry.make('mixer', spec)


def test_without_a_stack():
  module = registry.make('mixer', f'relative_bias({HOW})')(parent=None)
  with pytest.raises(kinds.Unsupported, match='shared=False'):
    _table.abstract(module, jnp.ones((B, T, _table.WIDTH)), _table.ctx())
