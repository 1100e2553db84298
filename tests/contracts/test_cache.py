"""The contract of caches, in whole models: step by step = all at once, also long after a window has
passed; bytes flat where claimed.

`test_mixer.py` proves the same for each mixer alone.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import _table
from lmjax import generate
from lmjax import kinds
from lmjax import registry
from lmjax import specs
from lmjax.nn import embedding

STEPS = 24
MODELS = {
  'full': dict(blocks__block__mixer='gqa(head_dim=8, kv_heads=2)'),
  'alibi': dict(position='alibi()'),
  'learned': dict(position='learned()'),
  'window': dict(blocks__block__mixer='gqa(head_dim=8, window=5)'),
  'mixed windows': dict(
    blocks__block__mixer='gqa(head_dim=8, window=3)',
    blocks__wide__mixer='gqa(head_dim=8, window=7, kv_heads=1)',
    stack='(block, wide)*2 + shared(wide)*2',
  ),
}
ROWS = {'full()': list(MODELS), 'window()': ['window', 'mixed windows']}
PAIRS = [(c, m) for c, models in ROWS.items() for m in models]
SEGMENTS = np.array([[1] * STEPS, [0] * 5 + [1] * (STEPS - 5)])  # left padding


@functools.cache
def instance(name):
  return _table.model(length=STEPS, **MODELS[name]), _table.model_params(
    length=STEPS, **MODELS[name]
  )


def ctx(part):
  return kinds.Ctx(
    jnp.asarray(_table.positions_of(SEGMENTS))[:, part], jnp.asarray(SEGMENTS, jnp.int32)[:, part]
  )


@functools.cache
def run(name):
  net, variables = instance(name)

  def f(tokens, ctx, cache):
    out = net.apply(variables, tokens, ctx, cache)
    return embedding.logits(out), out.cache

  return jax.jit(f)


def step_by_step(name, cache_spec, tokens, blocks):
  cache = instance(name)[0].init_cache(
    registry.make('cache', cache_spec), tokens.shape[0], tokens.shape[1]
  )
  out, start = [], 0
  for n in blocks:
    part = slice(start, start + n)
    logits, cache = run(name)(tokens[:, part], ctx(part), cache)
    out.append(logits)
    start += n
  assert start == tokens.shape[1]
  return np.concatenate(out, axis=1), cache


def test_no_part_is_missing():
  assert {specs.call(r).name for r in ROWS} == set(registry.names('cache'))


@pytest.mark.parametrize('cache, name', PAIRS)
@pytest.mark.parametrize(
  'blocks',
  [
    pytest.param([1] * STEPS, id='single', marks=pytest.mark.slow),
    pytest.param([9] + [1] * 15, id='prefill', marks=pytest.mark.slow),
    pytest.param([16, 3, 5], id='blocks'),
  ],
)
def test_cached_is_the_full_forward(cache, name, blocks):
  tokens = jnp.asarray(
    np.random.default_rng(0).integers(0, _table.VOCAB, SEGMENTS.shape), jnp.int32
  )
  want, _ = run(name)(tokens, ctx(slice(None)), None)
  got, _ = step_by_step(name, cache, tokens, blocks)
  real = SEGMENTS > 0
  _table.close(got[real], np.asarray(want)[real])


@pytest.mark.parametrize('cache', ROWS)
def test_bytes_are_flat_where_claimed(cache):
  part = registry.make('cache', cache)
  size = lambda length: sum(
    a.nbytes for a in jax.tree.leaves(instance('mixed windows')[0].init_cache(part, 2, length))
  )
  if part.fact('bounded'):
    assert size(100) == size(100_000)
    widest = max(
      max(a.shape) for a in jax.tree.leaves(instance('mixed windows')[0].init_cache(part, 2, 1000))
    )
    assert widest <= 8  # the window of 7, or the head size
  else:
    assert size(400) > 3.9 * size(100)


@pytest.mark.parametrize('cache', [c for c in ROWS if registry.make('cache', c).fact('bounded')])
def test_a_bounded_cache_is_refused_where_all_is_attended_to(cache):
  with pytest.raises(kinds.Unsupported, match='window'):
    instance('full')[0].init_cache(registry.make('cache', cache), 1, 8)


@pytest.mark.parametrize('cache', ROWS)
def test_models_that_look_ahead_are_refused(cache):
  net = _table.model(length=STEPS, blocks__block__mixer='gqa(head_dim=8, causal=False, window=4)')
  with pytest.raises(kinds.Unsupported, match='causal'):
    net.init_cache(registry.make('cache', cache), 1, 8)
  with pytest.raises(kinds.Unsupported, match='token by token'):
    generate.check(net, [[1]], 4)
