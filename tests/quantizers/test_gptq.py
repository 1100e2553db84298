"""GPTQ: figures worked out by hand, what must not change the result, and its error against rounding
to nearest.
"""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

import _table
from lmjax import kinds
from lmjax import registry
from lmjax.quantizers import gptq

I, O = 24, 6


@functools.cache
def correlated(seed=0, size=I):
  """Statistics of inputs of which each is close to its neighbours."""
  x = np.random.default_rng(seed).normal(size=(400, size)) @ np.tri(size)
  return kinds.Inputs(np.asarray(2 / 400 * x.T @ x, np.float32), np.abs(x).max(axis=0))


@functools.cache
def kernel(seed=1):
  return _table.normal(I, O, seed=seed)


def run(spec, w=None, inputs=None):
  w = kernel() if w is None else jnp.asarray(w, jnp.float32)
  part = registry.make('quantizer', spec)()
  return part.quantize(w, correlated() if inputs is None else inputs)


def matrix(found):
  """W^ (I, O), float64."""
  codes, scale, zero = (np.asarray(found[k], np.float64) for k in ('codes', 'scale', 'zero'))
  spread = lambda a: np.repeat(a, len(codes) // len(a), axis=0)
  return spread(scale) * (codes - spread(zero))


def off(found, h=None, w=None):
  """tr((W - Q) H (W - Q)^T), float64."""
  e = np.asarray(kernel() if w is None else w, np.float64) - matrix(found)
  return float(np.sum(e * (np.asarray(correlated().hessian_II if h is None else h) @ e)))


def integer_columns(h, w):
  """Codes of w (O, I) on the grid of integers -8 ... 7, by `columns`."""
  upper, _ = gptq.factor(jnp.asarray(h, jnp.float32), 1e-9)
  # A first row of 7s fixes the scale of its output alone; here the scale must be 1 by hand.
  wide = jnp.concatenate([jnp.asarray(w), jnp.asarray([[7.0]])], axis=1)
  full = jnp.eye(3).at[:2, :2].set(upper)
  codes, scale, zero = gptq.columns(
    wide,
    full,
    jnp.arange(3),
    bits=4,
    symmetric=True,
    group=None,
    block=3,
    clip=False,
    fixed=False,
  )
  assert scale.tolist() == [[1.0]] and zero.tolist() == [[8.0]]
  return (codes - 8)[:, :2]


def test_two_inputs_by_hand():
  """First code 1; the second weight becomes .4 and its code 0: error .56, to nearest .96."""
  h, w = np.array([[2.0, 1.0], [1.0, 2.0]]), np.array([[0.6, 0.6]])
  codes = integer_columns(h, w)
  assert codes.tolist() == [[1, 0]]
  error = lambda q: ((w - q) @ h @ (w - q).T).item()
  assert error(np.array(codes)) == pytest.approx(0.56)
  assert error(np.round(w)) == pytest.approx(0.96)


def test_the_factor_is_that_of_the_inverse():
  h = np.float64(correlated().hessian_II)
  upper, dead = gptq.factor(jnp.asarray(h, jnp.float32), 0.01)
  u = np.float64(upper)
  inverse = np.linalg.inv(h + 0.01 * np.mean(np.diag(h)) * np.eye(I))
  assert np.array_equal(u, np.triu(u)) and np.all(np.diag(u) > 0) and not dead.any()
  np.testing.assert_allclose(u.T @ u, inverse, atol=1e-4 * np.abs(inverse).max())
  small, _ = gptq.factor(jnp.asarray([[2.0, 1.0], [1.0, 2.0]]), 1e-9)
  inv = np.linalg.inv([[2.0, 1.0], [1.0, 2.0]])
  assert small[0, 1] / small[0, 0] == pytest.approx(inv[0, 1] / inv[0, 0], rel=1e-5)


@pytest.mark.parametrize('how', ['', ', group=6', ', symmetric=True', ', group=8, clip=True'])
@pytest.mark.parametrize('order', [False, True])
def test_independent_inputs_are_rounded_to_nearest(how, order):
  h = np.diag(np.random.default_rng(0).uniform(0.5, 4, I)).astype(np.float32)
  got = run(f'gptq(bits=3{how}, act_order={order})', inputs=kinds.Inputs(h, np.ones(I)))
  want = run(f'rtn(bits=3{how})')
  for key in want:
    _table.same(got[key], want[key])


@pytest.mark.slow
@pytest.mark.parametrize('group', [None, 8])
def test_the_size_of_blocks_changes_nothing(group):
  found = [run(f'gptq(bits=3, group={group}, block={b})') for b in (1, 7, I, 1000)]
  for other in found[1:]:
    assert np.array_equal(other['codes'], found[0]['codes'])
    _table.close(other['scale'], found[0]['scale'], 1e-3)


def reference(w_OI, h, bits, order):
  """Columns one by one in float64, from the factor of the inverse; no blocks, no groups."""
  w = np.float64(w_OI)
  h = np.float64(h) + 0.01 * np.mean(np.diag(h)) * np.eye(len(h))
  low, high = np.minimum(w.min(1), 0), np.maximum(w.max(1), 0)
  scale = (high - low) / (2**bits - 1)
  zero = np.round(-low / scale)
  w, h = w[:, order].copy(), h[np.ix_(order, order)]
  upper, q = np.linalg.cholesky(np.linalg.inv(h)).T, np.zeros_like(w)
  for j in range(len(h)):
    q[:, j] = np.clip(np.round(w[:, j] / scale) + zero, 0, 2**bits - 1)
    e = (w[:, j] - scale * (q[:, j] - zero)) / upper[j, j]
    w[:, j:] -= np.outer(e, upper[j, j:])
  out = np.zeros_like(q)
  out[:, order] = q
  return scale, zero, out


@pytest.mark.parametrize('act_order', [False, True])
def test_equals_a_loop_over_columns(act_order):
  """Scales of the matrix as given, codes in the given order whatever order they are made in."""
  h = correlated().hessian_II
  order = np.argsort(-np.diag(h), kind='stable') if act_order else np.arange(I)
  scale, zero, codes = reference(np.asarray(kernel()).T, h, 4, order)
  found = run(f'gptq(bits=4, act_order={act_order}, block=5)')
  np.testing.assert_allclose(np.float64(found['scale'][0]), scale, rtol=1e-3)
  assert np.array_equal(found['zero'][0], zero)
  # float16 scales differ by up to a thousandth, which may move a code at the border by one
  assert np.mean(np.asarray(found['codes']).T != codes) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize('bits', [2, 3, 4])
@pytest.mark.parametrize('how', ['', ', group=8', ', clip=True'])
def test_less_error_than_to_nearest_on_correlated_inputs(bits, how):
  nearest = off(run(f'rtn(bits={bits}{how})'))
  for more in ('', ', act_order=True'):
    assert off(run(f'gptq(bits={bits}{how}{more})')) < 0.6 * nearest


def test_groups_see_what_was_moved_to_them():
  """The second group's scale is that of its columns after the first one's errors."""
  found = run('gptq(bits=2, group=12)')
  before = run('rtn(bits=2, group=12)')
  _table.same(found['scale'][0], before['scale'][0])
  assert np.all(np.abs(np.float64(found['scale'][1]) - np.float64(before['scale'][1])) > 1e-4)
  fixed = run('gptq(bits=2, group=12, act_order=True)')
  _table.same(fixed['scale'], before['scale'])


def test_dead_inputs_are_zero_and_change_nothing():
  h = correlated().hessian_II.copy()
  h[[3, 20]] = 0
  h[:, [3, 20]] = 0
  found = run('gptq(bits=4)', inputs=kinds.Inputs(h, np.ones(I)))
  assert np.all(matrix(found)[[3, 20]] == 0)
  moved = np.array(kernel())
  moved[[3, 20]] = 1.0
  again = run('gptq(bits=4)', w=moved, inputs=kinds.Inputs(h, np.ones(I)))
  assert np.array_equal(found['codes'], again['codes'])


def test_the_measure_is_the_squared_error_of_outputs():
  x = np.random.default_rng(0).normal(size=(400, I)) @ np.tri(I)
  q = matrix(run('gptq(bits=3)'))
  w = np.float64(kernel())
  got = gptq.proxy(kernel(), jnp.asarray(q, jnp.float32), correlated().hessian_II)
  assert float(got) == pytest.approx(2 / 400 * np.sum((x @ (w - q)) ** 2), rel=1e-3)


def test_statistics_without_a_factor_are_refused():
  h = -np.eye(I, dtype=np.float32)
  with pytest.raises(ValueError, match='no Cholesky factor with damp=0.01; give a larger damp'):
    run('gptq(bits=4)', inputs=kinds.Inputs(h, np.ones(I)))
