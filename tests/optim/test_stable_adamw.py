"""StableAdamW: Adam where nothing is outrun, the divisor by hand, its place of momentum."""

import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import registry
from lmjax.parallel.facts import Fact

VECTOR = Fact(('embed',), (), 'norm')


def make(fact=VECTOR, **args):
  return registry.get('optim', 'stable_adamw').obj(facts={'w': fact}, **args)


def run(tx, grads, state=None):
  state = tx.init({'w': grads[0]}) if state is None else state
  for g in grads:
    u, state = tx.update({'w': g}, state)
  return np.asarray(u['w'], np.float64), state


def with_v(tx, v, count, like):
  """A state whose next v will be `v`, the factor of the old one being 1."""
  state = tx.init({'w': like})
  return state._replace(v={'w': v}, count=jnp.int32(count))


def test_the_divisor_by_hand():
  """g = (1, 1, 1, 10) over v = 1 gives r = sqrt(103 / 4); the new v counts."""
  g = jnp.array([1.0, 1.0, 1.0, 10.0])
  b2 = 1 - 1e-7
  tx = make(b1=0.0, b2=b2, eps=1e-6)
  u, state = run(tx, [g], with_v(tx, jnp.ones(4), 10**6, g))
  v = np.asarray(state.v['w'], np.float64)
  r = np.sqrt(np.mean(np.asarray(g, np.float64) ** 2 / v))
  assert r == pytest.approx(5.0744458, rel=1e-3)
  np.testing.assert_allclose(u, np.asarray(g) / (np.sqrt(v) + 1e-6) / r, rtol=1e-5)


def test_the_first_step_is_never_shortened():
  """v after its first update is g^2, so that r is 1 whatever g; the old v would explode."""
  for scale in (1e-3, 1.0, 1e4):
    u, state = run(make(), [jnp.array([1.0, -3.0, 0.5]) * scale])
    np.testing.assert_allclose(np.abs(u), 1.0, rtol=2e-3)
    assert u[1] < 0


def test_calm_gradients_are_adams():
  g = jnp.array([0.3, -0.1, 2.0])
  falling = [g * 0.9**i for i in range(6)]
  u, state = run(make(b2=0.95, eps=1e-8), falling)
  tx = registry.get('optim', 'adam').obj(b2=0.95, eps=1e-8)
  want, other = None, tx.init(g)
  for x in falling:
    want, other = tx.update(x, other)
  np.testing.assert_allclose(u, want, rtol=1e-5)
  assert state.metrics['clip_rate'] == 0


def test_momentum_stays_out_of_the_divisor():
  """After a spike the gradient is calm and only m is large: nothing is shortened."""
  calm, tx = jnp.ones(4), make(b1=0.9, b2=0.999)
  _, state = run(tx, [calm, 100 * calm])
  assert state.metrics['clip_rate'] == 1
  u, state = run(tx, [calm], state)
  assert state.metrics['clip_rate'] == 0
  m, v = (np.asarray(x['w'], np.float64) for x in (state.m, state.v))
  np.testing.assert_allclose(u, m / (np.sqrt(v) + 1e-6), rtol=1e-5)


def test_each_layer_is_shortened_by_itself():
  stack = Fact(('layers', 'embed'), (), 'norm')
  one = jnp.ones((2, 3))
  tx = make(stack, b1=0.0)
  u, state = run(tx, [one, one.at[1].set(50.0)])
  calm, _ = run(make(b1=0.0), [one[0], one[0]])
  loud, _ = run(make(b1=0.0), [one[1], 50 * one[1]])
  np.testing.assert_allclose(u, np.stack([calm, loud]), rtol=1e-6)
  assert float(state.metrics['clip_rate']) == 0.5


def test_eps_keeps_silent_coordinates_out_of_the_divisor():
  """g^2 / v would be 1 / (1 - b2) for a coordinate of 1e-20 after silence."""
  g = jnp.array([0.0, 0.0, 1.0])
  u, state = run(make(b2=0.999), [g, g, g.at[0].set(1e-9)])
  assert state.metrics['clip_rate'] == 0 and np.abs(u[0]) < 1e-3
