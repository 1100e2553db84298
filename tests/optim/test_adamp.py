"""AdamP: the step has no radial part where the gradient has none, by channel or by layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import registry
from lmjax.parallel.facts import Fact

MATRIX = Fact(('embed', 'mlp'), ('embed',))
HEADS = Fact(('embed', 'heads', 'head_dim'), ('embed',))
TABLE = Fact(('vocab', 'embed'), ('vocab',), 'embed')


def updates(spec, params, grads, fact=MATRIX):
  tx = registry.make('optim', spec, facts=dict(w=fact))()
  state, out, step = tx.init(dict(w=params)), [], jax.jit(tx.update)
  for g in grads:
    u, state = step(dict(w=g), state, dict(w=params))
    out.append(np.float64(u['w']))
  return out, state


def draw(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def tangent(w, g, axes):
  """g without its parts along w, a vector over these axes."""
  dot = lambda x, y: jnp.sum(x * y, axis=axes, keepdims=True)
  return g - w * dot(w, g) / dot(w, w)


@pytest.mark.parametrize(
  'fact, shape, axes',
  [
    (MATRIX, (12, 5), (0,)),
    (HEADS, (12, 3, 4), (0,)),
    (TABLE, (9, 8), (1,)),
    (Fact(('layers', 'embed', 'mlp'), ('embed',)), (3, 12, 5), (1,)),
  ],
  ids=['matrix', 'heads', 'table', 'layers'],
)
def test_channels_do_not_grow_where_the_loss_ignores_their_length(fact, shape, axes):
  """Orthogonal gradients and momentum: ||w - lr u||^2 = ||w||^2 + lr^2 ||u||^2 by channel."""
  w = draw(*shape)
  grads = [tangent(w, draw(*shape, seed=n), axes) for n in (1, 2, 3)]
  radial = lambda u: np.abs(np.sum(u * np.float64(w), axis=axes))
  with_it, state = updates('adamp()', w, grads, fact)
  without, _ = updates('adam(b2=0.999)', w, grads, fact)
  for u, v in zip(with_it, without):
    size = np.sqrt(np.sum(np.float64(w) ** 2, axis=axes) * np.sum(u * u, axis=axes))
    assert np.all(radial(u) < 1e-5 * size)
    assert np.any(radial(v) > 1e-2 * size)
  assert state.metrics['projected'] == 1


def test_the_layer_is_tried_where_a_channel_does_not_qualify():
  w = draw(40, 30)
  g = tangent(w, draw(40, 30, seed=1), (0, 1))
  g = g.at[:, 0].add(w[:, 0]).at[:, 1].add(-w[:, 1] * jnp.sum(w[:, 0] ** 2) / jnp.sum(w[:, 1] ** 2))
  (u,), state = updates('adamp()', w, [g])
  (v,), _ = updates('adam(b2=0.999)', w, [g])
  assert state.metrics['projected'] == 1
  assert abs(np.sum(u * w)) < 1e-4 and abs(np.sum(u[:, 0] * w[:, 0])) > 1
  off = np.float64(w) * np.sum(v * w) / np.sum(np.float64(w) ** 2)
  np.testing.assert_allclose(u, v - off, atol=1e-6)


def test_radial_gradients_are_left_to_adam():
  w = draw(40, 30)
  g = draw(40, 30, seed=1) + 0.5 * w
  (u,), state = updates('adamp()', w, [g])
  (v,), _ = updates('adam(b2=0.999)', w, [g])
  np.testing.assert_allclose(u, v, rtol=1e-6)
  assert state.metrics['projected'] == 0


def test_the_threshold_falls_with_the_root_of_the_length():
  """One channel of n = 100 at a cosine of 0.009 and 0.011; delta / sqrt(n) = 0.01."""
  w = jnp.zeros((100, 1)).at[0].set(1.0)
  for cos, acts in ((0.009, 1), (0.011, 0)):
    g = jnp.zeros((100, 1)).at[0].set(cos).at[1].set(np.sqrt(1 - cos**2))
    assert updates('adamp()', w, [g])[1].metrics['projected'] == acts


def test_decay_is_weaker_where_the_projection_acts():
  w = draw(12, 5)
  spec = 'adamp(wd_ratio=0.25, decay=decay(rate=0.5))'
  for g, ratio in ((tangent(w, draw(12, 5, seed=1), (0,)), 0.25), (w, 1.0)):
    (u,), _ = updates(spec, w, [g])
    (v,), _ = updates('adamp(wd_ratio=0.25)', w, [g])
    np.testing.assert_allclose(u - v, ratio * 0.5 * np.float64(w), atol=1e-6)


def test_vectors_and_moments_are_not_projected():
  fact = Fact(('embed',), (), 'norm')
  w, g = jnp.ones(8), jnp.array([1.0, -1.0] * 4)
  (u,), _ = updates('adamp()', w, [g + 0.5], fact)
  np.testing.assert_allclose(u, [1, -1] * 4, rtol=1e-5)
  w = draw(12, 5)
  g = tangent(w, draw(12, 5, seed=1), (0,))
  _, state = updates('adamp()', w, [g, g + w])
  np.testing.assert_allclose(state.direction.mu['w'], 0.09 * g + 0.1 * (g + w), atol=1e-6)
