"""Lion's order of operations, by the hand trace of its catalogue entry, and its limit Signum."""

import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import registry


def lion(**args):
  return registry.get('optim', 'lion').obj(**args)


@pytest.mark.parametrize('g, want', [(-0.085, 1.0), (-0.1, -1.0)])
def test_steps_by_the_old_momentum_with_b1_and_stores_with_b2(g, want):
  """Refreshed before the step, the first gives -1; by the sign of the new m, the second +1."""
  tx, one = lion(b1=0.9, b2=0.99), jnp.ones(1)
  u, state = tx.update(one, tx.init(one))
  assert u == 1
  np.testing.assert_allclose(state.mu, 0.01, rtol=1e-5)
  u, _ = tx.update(one * g, state)
  assert u == want


def test_equal_betas_are_the_sign_of_the_momentum():
  rng = np.random.default_rng(0)
  tx, m = lion(b1=0.8, b2=0.8), np.zeros(50)
  state = tx.init(jnp.zeros(50))
  for _ in range(4):
    g = rng.standard_normal(50)
    m = 0.8 * m + 0.2 * g
    u, state = tx.update(jnp.asarray(g, jnp.float32), state)
    np.testing.assert_array_equal(u, np.sign(m))


def test_a_coordinate_without_gradient_and_momentum_stays():
  tx, g = lion(), jnp.array([0.0, -3.0])
  u, _ = tx.update(g, tx.init(g))
  np.testing.assert_array_equal(u, [0, -1])
