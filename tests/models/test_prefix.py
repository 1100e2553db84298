"""A prefix that its whole document may see: who sees whom, by gradient; the same with a cache."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import _table
from lmjax import kinds
from lmjax import registry
from lmjax.nn import embedding

SEGMENTS = np.array([[1, 1, 1, 1, 1, 2, 2, 2, 2, 0]])
PREFIX = np.array([[1, 1, 1, 0, 0, 1, 1, 0, 0, 0]])
T = SEGMENTS.shape[1]
MIXER = 'gqa(head_dim=8)'


def net(position='rope()', mixer=MIXER):
  return _table.model(depth=1, length=T, position=position, blocks__block__mixer=mixer)


def ctx(prefix=PREFIX, segments=SEGMENTS):
  positions = jnp.asarray(_table.positions_of(segments))
  segments = jnp.asarray(segments, jnp.int32)
  prefix = None if prefix is None else jnp.asarray(prefix, jnp.int32)
  return kinds.Ctx(positions, segments, prefix_BT=prefix)


def params(position='rope()'):
  return _table.model_params(depth=1, length=T, position=position, blocks__block__mixer=MIXER)


def inputs():
  return jnp.asarray(np.random.default_rng(0).integers(0, _table.VOCAB, SEGMENTS.shape), jnp.int32)


def seen(prefix, position='rope()') -> np.ndarray:
  """Boolean (T, T): whether the output at t moves with the mixer's input at s."""
  mixer = registry.make('mixer', MIXER)(parent=None)
  c = ctx(prefix).replace(scheme=_table.scheme(position=position, length=T))
  x = _table.normal(1, T, _table.WIDTH)
  own = mixer.init(jax.random.key(0), x, c)
  slopes = jax.jacobian(lambda x: mixer.apply(own, x, c)[0][0].sum(-1))(x)[:, 0]
  return np.asarray(jnp.abs(slopes).sum(-1) > 1e-7)


@pytest.mark.parametrize(
  'position', ['alibi()', *(pytest.param(p, marks=pytest.mark.slow) for p in ('rope()', 'none()'))]
)
def test_who_sees_whom(position):
  t, s = np.arange(T)[:, None], np.arange(T)
  same = (SEGMENTS[0][:, None] == SEGMENTS[0]) & (SEGMENTS[0][:, None] > 0)
  np.testing.assert_array_equal(seen(None, position), same & (s <= t))
  np.testing.assert_array_equal(seen(0 * PREFIX, position), same & (s <= t))
  np.testing.assert_array_equal(seen(PREFIX, position), same & ((s <= t) | (PREFIX[0] > 0)))


def test_a_prefix_of_everything_is_attention_both_ways():
  m = net()
  v = params()
  both = net(mixer='gqa(head_dim=8, causal=False)')
  a = m.apply(v, inputs(), ctx(np.ones_like(PREFIX))).hidden_BTD
  b = both.apply(v, inputs(), ctx(None)).hidden_BTD
  real = SEGMENTS[0] > 0
  np.testing.assert_allclose(a[:, real], b[:, real], atol=1e-5)
  assert not np.allclose(a[:, real], m.apply(v, inputs(), ctx(None)).hidden_BTD[:, real], atol=1e-3)


@pytest.mark.slow
def test_a_cache_filled_with_a_prefix_goes_on_alike():
  m, v = net(), params()
  one, prefix, tokens = np.ones((1, T), int), np.array([[1] * 4 + [0] * 6]), inputs()
  want = embedding.logits(m.apply(v, tokens, ctx(prefix, one)))
  cache = m.init_cache(registry.make('cache', 'full()'), 1, T)
  cut = lambda c, a, b: jax.tree.map(lambda x: x[:, a:b] if getattr(x, 'ndim', 0) == 2 else x, c)
  got, at = [], 0
  for end in (5, 6, 7, 8, 9, 10):
    c = cut(ctx(prefix, one), at, end)
    out = m.apply(v, tokens[:, at:end], c if at == 0 else c.replace(prefix_BT=None), cache)
    cache, at = out.cache, end
    got.append(embedding.logits(out))
  np.testing.assert_allclose(jnp.concatenate(got, 1), want, atol=1e-4)


def test_what_cannot_be_honoured_is_refused():
  c = ctx().replace(scheme=_table.scheme(length=T))
  x = _table.normal(1, T, _table.WIDTH)
  mixer = registry.make('mixer', 'gqa(head_dim=8, window=4)')
  assert not mixer.fact('prefix') and registry.make('mixer', MIXER).fact('prefix')
  with pytest.raises(kinds.Unsupported, match='a window and a prefix'):
    jax.eval_shape(mixer(parent=None).init, jax.random.key(0), x, c)
  m = net('alibi()')
  v = params('alibi()')
  cache = m.init_cache(registry.make('cache', 'full()'), 1, T)
  with pytest.raises(kinds.Unsupported, match='does not keep where the tokens of a prefix stand'):
    jax.eval_shape(m.apply, v, inputs(), ctx(), cache)
