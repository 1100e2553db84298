"""Products in 8-bit floats: values, scales and gradients against NumPy, budget of error, meshes."""

import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import _linears
import _table
from lmjax import registry

pytest.importorskip('qwix', reason="qwix is not installed: pip install 'lmjax[fp8]'")

ROWS, INS, OUTS = 128, 64, 48
MOST = dict(e4m3=448.0, e5m2=57344.0)
TYPES = dict(e4m3=ml_dtypes.float8_e4m3fn, e5m2=ml_dtypes.float8_e5m2)


def rounded(a, axis, form='e4m3'):
  """(values, scale) of a in a type whose largest number is the largest of a."""
  scale = np.max(np.abs(a), axis=axis, keepdims=True) / np.float32(MOST[form])
  return (a / scale).astype(TYPES[form]).astype(np.float32), scale


def module(spec):
  return registry.make('linear', spec)(
    ins=(('embed', INS),),
    outs=(('mlp', OUTS),),
    role='hidden',
    scheme=_table.scheme(),
    bias=False,
    parent=None,
  )


def given():
  scales = np.exp(np.linspace(-4, 4, ROWS)).astype(np.float32)[:, None]
  x, w, g = (
    _table.normal(*s, seed=i) for i, s in enumerate(((ROWS, INS), (INS, OUTS), (ROWS, OUTS)))
  )
  return np.float32(x) * scales, np.float32(w), np.float32(g)


def gradients(spec, x, w, g):
  """(y, dx, dW) of sum(y g)."""
  apply = lambda x, w: module(spec).apply({'params': {'kernel': w}}, x)
  y, back = jax.vjp(apply, jnp.asarray(x)[None], jnp.asarray(w))
  dx, dw = back(jnp.asarray(g)[None])
  return np.asarray(y[0]), np.asarray(dx[0]), np.asarray(dw)


@pytest.mark.parametrize('scaling, axes', [('channel', (-1, 0)), ('tensor', (None, None))])
def test_a_product_of_rounded_values(scaling, axes):
  x, w, g = given()
  x8, sx = rounded(x, axes[0])
  w8, sw = rounded(w, axes[1])
  got, _, _ = gradients(f'fp8(scaling="{scaling}")', x, w, g)
  np.testing.assert_allclose(got, (x8 @ w8) * sx * sw, rtol=1e-5, atol=1e-6 * np.abs(got).max())
  assert np.abs(got - x @ w).max() > 1e-3


@pytest.mark.parametrize('form', ['e5m2', 'e4m3'])
def test_gradients_are_products_of_rounded_values(form):
  """The gradient is rounded with the scale of its partner in it: dx over outputs, dW over rows."""
  x, w, g = given()
  (x8, sx), (w8, sw) = rounded(x, -1), rounded(w, 0)
  _, dx, dw = gradients(f'fp8(gradients="{form}")', x, w, g)
  g8, sg = rounded(g * sw, -1, form)
  np.testing.assert_allclose(dx, (g8 @ w8.T) * sg, rtol=1e-5, atol=1e-6 * np.abs(dx).max())
  g8, sg = rounded(g * sx, 0, form)
  np.testing.assert_allclose(dw, (x8.T @ g8) * sg, rtol=1e-5, atol=1e-6 * np.abs(dw).max())


def test_gradients_of_none_are_those_of_a_full_matrix():
  x, w, g = given()
  _, dx, dw = gradients('fp8(gradients=None)', x, w, g)
  np.testing.assert_allclose(dx, g @ w.T, rtol=1e-4, atol=1e-5 * np.abs(dx).max())
  np.testing.assert_allclose(dw, x.T @ g, rtol=1e-4, atol=1e-5 * np.abs(dw).max())


@pytest.mark.parametrize('form, most', [('e5m2', 0.06), ('e4m3', 0.042)])
def test_the_budget_of_error(form, most):
  """What the docstring says of Gaussian numbers, whatever the sizes of rows."""
  x, w, g = given()
  y, dx, dw = gradients(f'fp8(gradients="{form}")', x, w, g)
  off = lambda got, want: np.linalg.norm((got - want)) / np.linalg.norm(want)
  assert 0.02 < off(y, x @ w) < 0.04
  assert 0.03 < off(dx, g @ w.T) < most
  assert 0.03 < off(dw, x.T @ g) < most


@pytest.mark.parametrize('name', [pytest.param('auto', marks=pytest.mark.slow), 'explicit'])
def test_trains_on_a_mesh_as_on_one_device(name):
  """Sums in another order move a value over the edge between two codes now and then."""
  _linears.on_a_mesh(name, 'fp8()', rtol=2e-3)


def test_trains_about_as_a_full_matrix_does():
  (full, _), (eight, _) = _linears.alone('dense()'), _linears.alone('fp8()')
  assert eight[-1] < eight[0]
  np.testing.assert_allclose(eight, full, rtol=5e-3)
  assert not np.allclose(eight, full, rtol=1e-6)


def test_without_its_library(monkeypatch):
  monkeypatch.setitem(sys.modules, 'qwix', None)
  with pytest.raises(ValueError, match=r"fp8 needs qwix: pip install 'lmjax\[fp8\]'"):
    registry.make('linear', 'fp8()')
