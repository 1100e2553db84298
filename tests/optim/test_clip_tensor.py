"""Clipping by the norm of each tensor of each layer."""

import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import registry
from lmjax.parallel.facts import Fact

MATRIX = Fact(('embed', 'mlp'), ('embed',))
STACK = Fact(('layers', 'embed', 'mlp'), ('embed',))
VECTOR = Fact(('embed',), (), 'norm')


def clipped(g, facts, **args):
  tx = registry.get('optim', 'clip_tensor').obj(facts=facts, **args)
  return tx.update(g, tx.init(g))


def test_each_tensor_has_a_norm_of_its_own():
  g = {'a': jnp.array([3.0, 4.0]), 'b': jnp.array([[0.6, 0.0]])}
  u, state = clipped(g, dict(a=VECTOR, b=MATRIX))
  np.testing.assert_allclose(u['a'], [0.6, 0.8], rtol=1e-6)
  np.testing.assert_array_equal(u['b'], g['b'])
  assert float(state.metrics['clip_rate']) == 0.5


def test_a_loud_layer_does_not_quiet_the_others():
  g = jnp.stack([jnp.full((2, 2), 0.25), jnp.full((2, 2), 100.0), jnp.zeros((2, 2))])
  u, state = clipped({'w': g}, {'w': STACK}, norm=2.0)
  np.testing.assert_allclose(u['w'], jnp.stack([g[0], g[1] / 100, g[2]]), rtol=1e-6)
  assert float(state.metrics['clip_rate']) == pytest.approx(1 / 3)


def test_at_the_norm_nothing_changes():
  g = {'w': jnp.array([[3.0, 4.0]])}
  u, state = clipped(g, {'w': MATRIX}, norm=5.0)
  np.testing.assert_array_equal(u['w'], g['w'])
  assert state.metrics['clip_rate'] == 0


def test_half_precision_neither_overflows_nor_hides_what_is_not_finite():
  u, _ = clipped({'w': jnp.array([[300.0, 400.0]], jnp.float16)}, {'w': MATRIX})
  np.testing.assert_allclose(u['w'], [[0.6, 0.8]], rtol=1e-3)
  for bad in (jnp.nan, jnp.inf):
    assert not np.all(np.isfinite(clipped({'w': jnp.array([[bad, 1.0]])}, {'w': MATRIX})[0]['w']))
