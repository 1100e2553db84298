"""Newton-Schulz on single values and against the SVD, scales, momentum, and where it runs."""

import jax
from jax.sharding import AxisType, PartitionSpec as P
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import registry
from lmjax.optim import muon as module
from lmjax.parallel.facts import Fact

MATRIX = Fact(('embed', 'mlp'), ('embed',))


def update(g, fact=MATRIX, steps=1, **args):
  """The update of the last of `steps` equal steps, for one matrix."""
  tx = registry.get('optim', 'muon').obj(facts={'w': fact}, **args)
  state = tx.init({'w': g[0] if isinstance(g, list) else g})
  for x in g if isinstance(g, list) else [g] * steps:
    u, state = tx.update({'w': x}, state)
  return np.asarray(u['w'], np.float64)


def draw(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def test_the_map_of_single_values():
  """Five iterations of the polynomial, for numbers, and for singular values that it must keep."""
  singular = np.array([1.0, 0.5, 0.1, 0.01, 0.001])
  x = jnp.diag(jnp.asarray(singular, jnp.float32))
  for start, want in zip(singular, (0.6964, 0.7654, 0.7121, 0.6989, 0.4705)):
    value = np.float64(start)
    for _ in range(5):
      value = 3.4445 * value - 4.7750 * value**3 + 2.0315 * value**5
    assert value == pytest.approx(want, abs=1e-4)
  norm = np.linalg.norm(singular)
  got = np.diag(np.asarray(module.orthogonalize(x, 5)))
  for g, start in zip(got, singular / norm):
    for _ in range(5):
      start = 3.4445 * start - 4.7750 * start**3 + 2.0315 * start**5
    assert g == pytest.approx(start, rel=1e-4)


@pytest.mark.parametrize('shape', [(6, 6), (5, 9), (9, 5)])
def test_keeps_singular_vectors_and_brings_values_near_one(shape):
  g = draw(*shape)
  u, s, v = np.linalg.svd(np.asarray(g, np.float64), full_matrices=False)
  inside = u.T @ update(g, scale='spectral') @ v.T / max(1, shape[1] / shape[0]) ** 0.5
  np.testing.assert_allclose(inside, np.diag(np.diag(inside)), atol=2e-4)
  assert np.all(s / np.linalg.norm(s) > 0.005)
  assert np.all((np.diag(inside) > 0.68) & (np.diag(inside) < 1.16))


def test_scales():
  """out / in = 4: the original doubles; the wide side decides the other."""
  g = draw(4, 16)
  plain = np.asarray(module.orthogonalize(g, 5), np.float64)
  np.testing.assert_allclose(update(g, scale='spectral'), 2 * plain, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(update(g.T, scale='spectral'), plain.T, rtol=1e-4, atol=1e-6)
  for x in (g, g.T):
    np.testing.assert_allclose(np.abs(update(x)), 0.8 * np.abs(plain if x is g else plain.T), 1e-3)
  big = update(draw(64, 256))
  assert 0.15 < np.sqrt(np.mean(big**2)) < 0.25  # Adam's is 0.2 to 0.4


def test_the_size_of_the_gradient_does_not_matter():
  g = draw(6, 4)
  for factor in (0.1, 1e4):
    np.testing.assert_allclose(update(factor * g), update(g), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize('nesterov', [True, False])
def test_momentum_is_a_mean_and_nesterov_adds_this_gradient(nesterov):
  """Two steps: m = 0.75 . 0.25 a + 0.25 b, without a correction of its bias."""
  a, b = draw(4, 3), draw(4, 3, seed=1)
  m = 0.75 * 0.25 * a + 0.25 * b
  x = 0.25 * b + 0.75 * m if nesterov else m
  want = module.orthogonalize(x, 5) * 0.2 * 2
  np.testing.assert_allclose(update([a, b], momentum=0.75, nesterov=nesterov), want, atol=1e-5)


def test_all_heads_of_a_projection_are_one_matrix():
  g = draw(6, 2, 3)
  query = Fact(('embed', 'heads', 'head_dim'), ('embed',))
  got = update(g, query)
  np.testing.assert_allclose(got.reshape(6, 6), update(g.reshape(6, 6)), atol=1e-6)
  out = Fact(('heads', 'head_dim', 'embed'), ('heads', 'head_dim'), 'residual')
  g = draw(2, 3, 4)
  np.testing.assert_allclose(update(g, out).reshape(6, 4), update(g.reshape(6, 4)), atol=1e-6)


def test_layers_of_a_stack_do_not_disturb_each_other():
  g = draw(3, 4, 3).at[0].set(0.0).at[2].multiply(1e4)
  got = update(g, Fact(('layers', 'embed', 'mlp'), ('embed',)))
  np.testing.assert_array_equal(got[0], 0)
  for i in (1, 2):
    np.testing.assert_allclose(got[i], update(g[i]), atol=1e-5)


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_half_precision(dtype):
  """A norm of 3000 squared is beyond float16."""
  g = (300 * draw(8, 12)).astype(dtype)
  wide = update(g.astype(jnp.float32))
  np.testing.assert_allclose(update(g), wide, rtol=2.0**-7, atol=1e-4)


@pytest.mark.parametrize(
  'fact, shape',
  [(Fact(('layers', 'embed'), (), 'norm'), (2, 3)), (Fact((None, None), (), 'other'), (3, 3))],
)
def test_what_is_no_matrix_is_refused(fact, shape):
  tx = registry.get('optim', 'muon').obj(facts={'block': {'w': fact}})
  with pytest.raises(
    ValueError, match=r'config\.optim: muon was given block/w, which is no matrix'
  ):
    tx.init({'block': {'w': jnp.zeros(shape)}})


@pytest.mark.parametrize('kind', [AxisType.Auto, AxisType.Explicit])
def test_layers_are_shared_out_over_the_mesh(kind):
  """Eight layers on eight devices: each device iterates one layer, without communication."""
  mesh = jax.make_mesh((4, 2), ('data', 'tensor'), axis_types=(kind, kind))
  fact = Fact(('layers', 'embed', 'mlp'), ('embed',))
  g = draw(8, 8, 4)
  want = update(g, fact)
  tx = registry.get('optim', 'muon').obj(facts={'w': fact})
  with jax.set_mesh(mesh):
    place = jax.NamedSharding(mesh, P(None, 'data', 'tensor'))
    g = {'w': jax.device_put(g, place)}
    run = jax.jit(tx.update, donate_argnums=1).lower(g, tx.init(g)).compile()
    u, state = run(g, tx.init(g))
  np.testing.assert_allclose(u['w'], want, atol=1e-5)
  assert u['w'].sharding.is_equivalent_to(place, 3)
  assert state.m['w'].sharding.is_equivalent_to(place, 3)
  text = run.as_text()
  assert 'f32[1,8,4]' in text or 'f32[1,4,8]' in text, 'one whole layer'
  assert 'all-reduce' not in text, 'products of matrices that are cut'
