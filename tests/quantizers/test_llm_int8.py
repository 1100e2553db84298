"""LLM.int8(): the product by hand, its limits, planted outliers, and the report of outlier
features.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import _table
from lmjax import kinds
from lmjax import registry
from lmjax.models.linears import int8
from lmjax.quantizers import _outliers

X = jnp.asarray([[1.0, 2.0, 60.0], [0.5, -1.0, -40.0]])
W = jnp.asarray([[1.0, 0.0], [0.0, 1.0], [0.01, 0.02]])


def codes(w_IO, scaling='vector'):
  """(codes, scale) of the quantizer."""
  found = registry.make('quantizer', f'llm_int8(scaling={scaling!r})')().quantize(w_IO)
  return found['codes'], found['scale']


def product(x, w, tau=6.0, scaling='vector', rows=None):
  c, s = codes(w, scaling)
  return np.asarray(int8.product(x, c, s, tau=tau, scaling=scaling, rows_IO=rows))


def test_by_hand():
  exact = np.asarray(X @ W)
  np.testing.assert_allclose(exact, [[1.6, 3.2], [0.1, -1.8]], atol=1e-6)
  vector = product(X, W, tau=None)
  np.testing.assert_allclose(vector, [[1.417323, 3.307087], [0.314961, -1.889764]], atol=2e-6)
  assert np.abs(vector - exact).max() == pytest.approx(0.215, abs=5e-4)
  apart = product(X, W, rows=W)
  np.testing.assert_allclose(apart, [[1.607874, 3.2], [0.103937, -1.8]], atol=2e-6)
  assert np.abs(apart - exact).max() == pytest.approx(0.0079, abs=5e-5)


@functools.cache
def data():
  """(inputs with three large features, a matrix)."""
  x = np.array(_table.normal(40, 64, seed=1))
  x[:, [3, 20, 41]] *= 30
  return jnp.asarray(x), _table.normal(64, 16, seed=2, scale=0.1)


def relative(got, want):
  return float(np.linalg.norm(got - want) / np.linalg.norm(want))


@pytest.mark.slow
def test_tau_zero_is_the_plain_product_and_infinity_the_plain_method():
  x, w = data()
  c, s = codes(w)
  _table.close(product(x, w, tau=0.0), x @ (c * s), 1e-6)
  _table.close(product(x, w, tau=0.0, rows=w), x @ w, 1e-6)
  for scaling in ('vector', 'row', 'tensor', 'zeropoint'):
    _table.same(product(x, w, 3e38, scaling), product(x, w, None, scaling))


def test_scales_do_not_see_the_outliers():
  """What is left of the product is as good as where the large features are 0 from the start."""
  x, w = data()
  large = np.abs(x).max(axis=0) >= 6
  assert 3 <= large.sum() < 10
  rest = jnp.where(large, 0.0, x)
  got = product(x, w, rows=w) - np.asarray(jnp.where(large, x, 0.0) @ w)
  np.testing.assert_allclose(got, product(rest, w, tau=None), atol=2e-5)


def test_outliers_are_features_of_all_rows():
  """A feature that is large in one row is taken apart in all of them."""
  w = jnp.eye(3)
  x = jnp.asarray([[100.0, 1.0, 0.003], [0.3, 1.0, 0.003]])
  got = product(x, w, rows=w)
  assert got[1, 0] == np.float32(0.3) and got[0, 0] == 100.0
  assert product(x, w, tau=None)[1, 0] != np.float32(0.3)


def test_the_threshold_is_reached_by_either_sign():
  x = jnp.asarray([[-6.0, 5.99, 6.0, 0.1], [0.37, 0.37, 0.37, 1.0]])
  got = product(x, jnp.eye(4), rows=jnp.eye(4))[1]
  assert (got[:3] == np.float32(0.37)).tolist() == [True, False, True]


def int32_sums(x8, w8):
  return np.asarray(x8, np.int64) @ np.asarray(w8, np.int64)


def test_int8_products_are_summed_in_int32():
  rng = np.random.default_rng(0)
  x8, w8 = (rng.integers(100, 128, s).astype(np.int8) for s in ((3, 3000), (3000, 4)))
  got = int8.multiply(jnp.asarray(x8), jnp.asarray(w8))
  assert got.dtype == jnp.int32 and np.array_equal(got, int32_sums(x8, w8))


@pytest.mark.parametrize('scaling', ['vector', 'row', 'tensor', 'zeropoint'])
def test_each_method_against_numpy(scaling):
  x, w = (np.asarray(a, np.float64) for a in data())
  x = x + 0.7
  sw = np.abs(w).max(axis=0 if scaling == 'vector' else None, keepdims=True) / 127
  w8 = np.round(w / sw)
  if scaling == 'zeropoint':
    s = (x.max() - x.min()) / 254
    z = -127 - np.round(x.min() / s)
    x8 = np.clip(np.round(x / s) + z, -127, 127)
    assert x8.min() == -127 and x8.max() >= 126
    want = s * sw * (int32_sums(x8, w8) - z * w8.sum(axis=0))
  else:
    s = np.abs(x).max(axis=1 if scaling != 'tensor' else None, keepdims=True) / 127
    want = s * sw * int32_sums(np.round(x / s), w8)
  got = product(jnp.asarray(x, jnp.float32), jnp.asarray(w, jnp.float32), None, scaling)
  _table.close(got, want, 2e-3)  # a half may round otherwise in float32


def test_only_the_decomposition_stands_outliers():
  x, w = data()
  exact = np.asarray(x @ w)
  assert relative(product(x, w), exact) < 0.01
  for scaling in ('row', 'tensor', 'zeropoint'):
    assert relative(product(x, w, None, scaling), exact) > 0.01
  # the many features that are no outliers
  rest = np.asarray(jnp.where(jnp.abs(x).max(0) >= 6, 0.0, x) @ w)
  large = np.asarray(jnp.where(jnp.abs(x).max(0) >= 6, x, 0.0))
  seen = lambda y: relative(y - large @ np.asarray(w), rest)
  assert seen(product(x, w, rows=w)) < 0.02 < 0.1 < seen(product(x, w, None))


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_the_module_keeps_the_rows_that_calibration_found(dtype):
  """Small weights of a large feature are rounded away, unless their rows are kept."""
  x, w = data()
  w = w.at[jnp.asarray([3, 20, 41])].divide(100.0)
  inputs = kinds.Inputs(np.eye(64), np.abs(np.asarray(x)).max(axis=0))

  def run(keep):
    part = registry.make('quantizer', f'llm_int8(keep={keep})')
    found = part().quantize(w, inputs)
    module = registry.make('linear', part().linear)(
      ins=(('embed', 64),), outs=(('mlp', 16),), role='hidden', bias=False, parent=None,
      scheme=_table.scheme(),
    )  # fmt: skip
    y = module.apply({'vars': module.stored(found)}, x[None].astype(dtype))[0]
    assert y.dtype == dtype
    return found, relative(np.asarray(y, np.float32), np.asarray(x @ w))

  found, kept = run(12)
  rows = np.asarray(found['rows'])
  assert {3, 20, 41} <= set(rows.tolist()) and 64 in rows  # 64 is no row
  assert np.all(inputs.largest_I[rows[rows < 64]] >= 6)
  assert kept < 0.015 and run(0)[1] > 2 * kept


def test_it_is_an_int8_product_on_an_accelerator():
  module = registry.make('linear', 'int8()')(
    ins=(('embed', 64),), outs=(('mlp', 16),), role='hidden', bias=False, parent=None,
    scheme=_table.scheme(),
  )  # fmt: skip
  x = jnp.ones((2, 8, 64), jnp.bfloat16)
  shapes = _table.abstract(module, x)
  variables = jax.tree.map(lambda b: b.value, shapes, is_leaf=lambda b: hasattr(b, 'fact'))
  traced = jax.jit(lambda v, x: module.apply(v, x)).trace(variables, x)
  text = traced.lower(lowering_platforms=('cuda',)).as_text()
  products = [line for line in text.splitlines() if 'stablehlo.dot_general' in line]
  assert any('xi8>' in p and p.rstrip().endswith('xi32>') for p in products)
  assert any('xbf16>' in p for p in products)


def test_emergent_outliers_are_in_a_quarter_of_layers_and_six_hundredths_of_positions():
  seen = _outliers.Seen(5)
  real = np.ones((2, 50), bool)
  real[1, 40:] = False  # 90 tokens
  for depth in range(8):
    above = np.zeros((2, 50, 5), bool)
    above[0, :6, 0] = depth < 2  # both: in 2 of 8 layers, 6 of 90 positions
    above[0, :5, 1] = True  # too few positions
    above[0, :, 2] = depth < 1  # too few layers
    above[0, 3 * depth : 3 * depth + 2, 3] = True  # other positions in each layer
    above[1, 40:, 4] = True  # padding
    seen.add(depth, 0, above, real)
  report = seen.report()
  assert report.features == [0, 3]
  np.testing.assert_allclose(report.layers, [0.25, 1, 0.125, 1, 0])
  np.testing.assert_allclose(report.positions, np.array([6, 5, 50, 16, 0]) / 90)
