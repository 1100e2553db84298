"""SGDP: momentum makes weights grow that the loss does not ask to; the projection does not."""

import jax
import jax.numpy as jnp
import numpy as np

from lmjax import registry
from lmjax.parallel.facts import Fact

FACTS = dict(w=Fact(('embed', 'mlp'), ('embed',)))


def train(spec: str, steps: int):
  """||w|| of each column after each step on a loss of w / ||w||, and the last loss."""
  rng = np.random.default_rng(0)
  target = jnp.asarray(rng.standard_normal((20, 3)), jnp.float32)
  w = jnp.asarray(rng.standard_normal((20, 3)), jnp.float32)
  tx = registry.make('optim', spec, facts=FACTS)()

  def loss(p):
    unit = p['w'] / jnp.linalg.norm(p['w'], axis=0)
    return -jnp.sum(unit * target / jnp.linalg.norm(target, axis=0))

  def body(carry, _):
    p, s = carry
    g = jax.grad(loss)(p)
    u, s = tx.update(g, s, p)
    p = jax.tree.map(lambda a, b: a - 0.1 * b, p, u)
    return (p, s), (jnp.linalg.norm(p['w'], axis=0), loss(p), jnp.sum(u['w'] ** 2, axis=0))

  p = dict(w=w)
  _, out = jax.lax.scan(body, (p, tx.init(p)), None, steps)
  return np.linalg.norm(w, axis=0), *map(np.float64, out)


def test_scale_invariant_weights_grow_by_the_step_alone():
  start, sizes, losses, steps = train('sgdp(momentum=0.9)', 100)
  before = np.concatenate([start[None], sizes[:-1]])
  np.testing.assert_allclose(sizes**2, before**2 + 0.01 * steps, rtol=1e-5)
  _, plain, slower, _ = train('sgd(momentum=0.9)', 100)
  assert np.all(sizes[-1] - start < 0.5 * (plain[-1] - start))
  assert losses[-1] < -2.9 and losses[20] < slower[20]


def test_second_step_of_momentum_is_radial_and_that_of_sgdp_is_not():
  """w = (1, 0), gradients (0, 1), then at the new w, by hand: momentum 0.5, rate 1."""
  w = jnp.array([[1.0], [0.0]])
  for spec, radial in (('sgd(momentum=0.5)', -0.5), ('sgdp(momentum=0.5)', 0.0)):
    tx = registry.make('optim', spec, facts=FACTS)()
    u, s = tx.update(dict(w=jnp.array([[0.0], [1.0]])), tx.init(dict(w=w)), dict(w=w))
    np.testing.assert_allclose(u['w'], [[0.0], [1.0]], atol=1e-7)
    new = jnp.array([[1.0], [-1.0]])  # w - u; its tangent is (1, 1)
    u, _ = tx.update(dict(w=jnp.array([[1.0], [1.0]])), s, dict(w=new))
    np.testing.assert_allclose(jnp.sum(u['w'] * new), radial, atol=1e-6)


def test_nesterov_projects_the_whole_step():
  w, g = jnp.array([[1.0], [0.0]]), jnp.array([[0.0], [1.0]])
  tx = registry.make('optim', 'sgdp(momentum=0.5, nesterov=True)', facts=FACTS)()
  u, s = tx.update(dict(w=g), tx.init(dict(w=w)), dict(w=w))
  np.testing.assert_allclose(u['w'], 1.5 * g)
  np.testing.assert_allclose(s.direction.trace['w'], g)
