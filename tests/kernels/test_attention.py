"""The attention operation: the reference against float64 NumPy, every implementation against the
reference, forward and gradient.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.kernels import attention as op
from lmjax.kernels.attention import blocks

ANYWHERE = ('xla', 'reference')  # for the others see test_attention_accelerators.py
OTHERS = ('xla',)
CASES = [
  dict(causal=causal, window=window, cap=cap, segments=segments, bias=bias)
  for causal, window, cap, segments, bias in itertools.product(
    (True, False), (None, 3), (None, 2.0), (False, True), (False, True)
  )
]


def normal(rng, *shape):
  return jnp.asarray(rng.normal(size=shape), jnp.float32)


def inputs(
  steps=7, keys=None, heads=4, groups=2, size=5, segments=False, bias=False, batch=2, seed=0
):
  """(q, k, v, keyword arguments); keys are those of the same row unless their number is given."""
  rng, keys = np.random.default_rng(seed), keys or steps
  arrays = (
    normal(rng, batch, steps, heads, size),
    normal(rng, batch, keys, groups, size),
    normal(rng, batch, keys, groups, size),
  )
  places = jnp.tile(jnp.arange(max(steps, keys), dtype=jnp.int32), (batch, 1))
  how = dict(q_positions=places[:, -steps:], k_positions=places[:, :keys])
  if segments:
    s = np.ones((batch, max(steps, keys)), np.int32)
    s[0, s.shape[1] // 2 :] = 2
    s[1, -2:] = 0
    how.update(q_segments=jnp.asarray(s[:, -steps:]), k_segments=jnp.asarray(s[:, :keys]))
  if bias:
    how.update(bias=normal(rng, batch, heads, steps, keys))
  return arrays, how


def numpy64(
  q,
  k,
  v,
  *,
  q_positions,
  k_positions,
  q_segments=None,
  k_segments=None,
  causal=True,
  window=None,
  cap=None,
  scale=None,
  bias=None,
):
  """One query at a time."""
  q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
  out = np.zeros_like(q)
  for b, t, h in itertools.product(*map(range, q.shape[:3])):
    g, logits, kept = h // (q.shape[2] // k.shape[2]), [], []
    for s in range(k.shape[1]):
      gap = int(q_positions[b, t]) - int(k_positions[b, s])
      hidden = (causal and gap < 0) or (window is not None and abs(gap) >= window)
      if k_segments is not None:
        hidden |= int(k_segments[b, s]) == 0 or int(k_segments[b, s]) != int(q_segments[b, t])
      if hidden:
        continue
      z = q[b, t, h] @ k[b, s, g] * (scale or q.shape[-1] ** -0.5)
      z = cap * np.tanh(z / cap) if cap else z
      logits.append(z + (0 if bias is None else float(bias[min(b, bias.shape[0] - 1), h, t, s])))
      kept.append(v[b, s, g])
    if kept:
      w = np.exp(np.array(logits) - max(logits))
      out[b, t, h] = (w / w.sum()) @ np.array(kept)
  return out


@pytest.mark.parametrize('case', CASES, ids=str)
def test_every_implementation_equals_float64(case):
  arrays, how = inputs(segments=case['segments'], bias=case['bias'])
  how.update({k: case[k] for k in ('causal', 'window', 'cap')})
  want = numpy64(*arrays, **how)
  for name in ANYWHERE:
    np.testing.assert_allclose(
      op.attention(*arrays, **how, implementation=name), want, atol=2e-6, err_msg=name
    )


def gradients(arrays, how, implementation, real=None):
  bias = how.get('bias')

  def total(q, k, v, bias):
    y = op.attention(q, k, v, **{**how, 'bias': bias}, implementation=implementation)
    return jnp.sum(jnp.sin(3 * y))

  return jax.jit(jax.grad(total, (0, 1, 2, 3) if bias is not None else (0, 1, 2)))(*arrays, bias)


@pytest.mark.parametrize('name', OTHERS)
@pytest.mark.parametrize('case', CASES[::3] + CASES[-1:], ids=str)
def test_gradients_equal_those_of_the_reference(name, case, monkeypatch):
  monkeypatch.setattr(blocks, 'BLOCK', 3)
  arrays, how = inputs(segments=case['segments'], bias=case['bias'])
  how.update({k: case[k] for k in ('causal', 'window', 'cap')})
  for got, want in zip(gradients(arrays, how, name), gradients(arrays, how, 'reference')):
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_the_references_gradient_is_its_slope():
  arrays, how = inputs(steps=4, size=3, segments=True)
  how.update(window=2, cap=2.0)
  got = gradients(arrays, how, 'reference')
  for i, c in itertools.product(range(3), range(2)):
    direction = np.random.default_rng(10 * i + c).normal(size=arrays[i].shape)

    def total(eps, i=i, direction=direction):
      moved = [
        np.asarray(a, np.float64) + (eps * direction if j == i else 0) for j, a in enumerate(arrays)
      ]
      return np.sum(np.sin(3 * numpy64(*moved, **how)))

    slope = (total(1e-6) - total(-1e-6)) / 2e-6
    np.testing.assert_allclose(np.sum(np.asarray(got[i]) * direction), slope, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', OTHERS)
@pytest.mark.parametrize('steps', [1, 5, 13])
@pytest.mark.parametrize('window', [None, 1, 6])
def test_blocks_of_a_long_row(name, steps, window, monkeypatch):
  monkeypatch.setattr(blocks, 'BLOCK', 4)
  arrays, how = inputs(steps=steps, segments=steps > 4, bias=True)
  how.update(window=window)
  run = jax.jit(
    lambda arrays, name: op.attention(*arrays, **how, implementation=name), static_argnums=1
  )
  np.testing.assert_allclose(run(arrays, name), numpy64(*arrays, **how), atol=2e-6)


def test_blocks_above_the_diagonal_are_not_computed(monkeypatch):
  monkeypatch.setattr(blocks, 'BLOCK', 4)
  arrays, how = inputs(steps=12)

  def exps(jaxpr):
    """Elements of every exp over keys, also inside calls."""
    total = 0
    for e in jaxpr.eqns:
      if e.primitive.name == 'exp':
        total += int(np.prod(e.outvars[0].aval.shape))
      for inner in jax.tree.leaves(
        list(e.params.values()), is_leaf=lambda x: hasattr(x, 'eqns') or hasattr(x, 'jaxpr')
      ):
        inner = getattr(inner, 'jaxpr', inner)
        total += exps(inner) if hasattr(inner, 'eqns') else 0
    return total

  def count(**more):
    call = lambda q, k, v: op.attention(q, k, v, **how, **more, implementation='xla')
    return exps(jax.make_jaxpr(call)(*arrays).jaxpr)

  full = count(aligned=False)
  assert full > 0
  assert count(aligned=True) * 144 == full * 96  # blocks of 4: 4 x (4 + 8 + 12)
  assert count(aligned=True, window=2) * 144 == full * 80  # 4 x (4 + 8 + 8)


@pytest.mark.parametrize('name', ANYWHERE)
@pytest.mark.parametrize('heads, groups', [(4, 4), (4, 2), (4, 1), (1, 1), (6, 3)])
def test_grouped_keys_and_more_keys_than_queries(name, heads, groups):
  arrays, how = inputs(steps=3, keys=8, heads=heads, groups=groups, segments=True)
  want = numpy64(*arrays, **how)
  np.testing.assert_allclose(
    op.attention(*arrays, **how, aligned=False, implementation=name), want, atol=2e-6
  )


@pytest.mark.parametrize('name', ANYWHERE)
def test_a_query_that_sees_nothing_gives_zero_and_no_gradient(name):
  arrays, how = inputs(segments=True)
  how['q_segments'] = how['q_segments'].at[0, 3].set(9)
  y = op.attention(*arrays, **how, implementation=name)
  assert np.all(np.asarray(y[0, 3]) == 0) and np.all(np.asarray(y[1, -2:]) == 0)
  grads = gradients(arrays, how, name)
  assert all(np.isfinite(g).all() for g in grads) and np.all(np.asarray(grads[0][0, 3]) == 0)


@pytest.mark.parametrize('name', ANYWHERE)
def test_large_logits_stay_finite(name):
  (q, k, v), how = inputs()
  y = op.attention(q * 1e3, k * 1e3, v, **how, implementation=name)
  np.testing.assert_allclose(y, numpy64(q * 1e3, k * 1e3, v, **how), atol=1e-3)


@pytest.mark.parametrize('name', ANYWHERE)
def test_low_precision_comes_back_in_the_dtype_of_q(name):
  (q, k, v), how = inputs()
  low = [a.astype(jnp.bfloat16) for a in (q, k, v)]
  y = op.attention(*low, **how, implementation=name)
  assert y.dtype == jnp.bfloat16
  np.testing.assert_allclose(
    np.asarray(y, np.float32), numpy64(*(np.asarray(a, np.float32) for a in low), **how), atol=0.03
  )


def test_refusals():
  arrays, how = inputs(heads=4, groups=3)
  with pytest.raises(ValueError, match='4 query heads do not divide by 3'):
    op.attention(*arrays, **how)
  arrays, how = inputs()
  with pytest.raises(
    ValueError, match="config.kernels.attention='fast': one of auto, cudnn, splash, xla, reference"
  ):
    op.attention(*arrays, **how, implementation='fast')
