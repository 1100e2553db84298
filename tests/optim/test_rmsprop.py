"""RMSProp is Adam without momentum, at half the memory."""

import jax
import jax.numpy as jnp
import numpy as np

from lmjax import registry


def test_equals_adam_without_momentum():
  rng = np.random.default_rng(0)
  ours = registry.make('optim', 'rmsprop(b2=0.9, eps=1e-2)')()
  theirs = registry.make('optim', 'adam(b1=0.0, b2=0.9, eps=1e-2)')()
  a, b = ours.init(jnp.zeros(50)), theirs.init(jnp.zeros(50))
  for _ in range(4):
    g = jnp.asarray(rng.standard_normal(50) * 10.0 ** rng.integers(-4, 3, 50), jnp.float32)
    (u, a), (v, b) = ours.update(g, a), theirs.update(g, b)
    np.testing.assert_allclose(u, v, rtol=1e-6)
  assert sum(x.size for x in jax.tree.leaves(a)) == 51


def test_first_update_is_the_sign_of_the_gradient_whatever_its_size():
  g = jnp.array([1e-3, -5.0, 2e4])
  tx = registry.make('optim', 'rmsprop()')()
  np.testing.assert_allclose(tx.update(g, tx.init(g))[0], [1, -1, 1], rtol=2e-5)
