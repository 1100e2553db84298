"""APOLLO: the raw gradient's direction, Adam's size, a projection that is never stored."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import registry
from lmjax.optim import apollo as apollo_lib
from lmjax.parallel.facts import Fact

FACTS = dict(w=Fact(('embed', 'mlp'), ('embed',)))


def draw(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def run(spec, grads):
  tx = registry.make('optim', spec, facts=FACTS)()
  params = dict(w=jnp.zeros_like(grads[0]))
  state, out, states, step = tx.init(params), [], [], jax.jit(tx.update)
  for g in grads:
    u, state = step(dict(w=g), state, params)
    out.append(np.asarray(u['w']))
    states.append(state)
  return out, states


def cosine(a, b, axis):
  dot = lambda x, y: np.sum(x * y, axis=axis)
  return dot(a, b) / np.sqrt(dot(a, a) * dot(b, b))


@pytest.mark.parametrize('shape, axis', [((6, 10), 0), ((10, 6), 1), ((8, 8), 0)])
def test_each_channel_of_the_long_side_keeps_its_direction(shape, axis):
  grads = [draw(*shape, seed=n) for n in range(3)]
  got, _ = run('apollo(rank=4)', grads)
  for u, g in zip(got, grads):
    np.testing.assert_allclose(cosine(u, np.asarray(g), axis), 1, atol=1e-6)
  assert np.std(np.linalg.norm(u, axis=axis) / np.linalg.norm(g, axis=axis)) > 1e-2


def test_the_first_step_by_hand():
  """From zero moments N is sign(R) of norm sqrt(r) in each column, its bias taken out."""
  g = draw(6, 10)
  (u,), _ = run('apollo(rank=4, eps=1e-12, seed=3)', [g])
  P = np.asarray(apollo_lib.projection(3, 0, 6, 4))
  want = np.asarray(g) * 2 / np.linalg.norm(P.T @ np.asarray(g), axis=0)
  np.testing.assert_allclose(u, want, rtol=1e-4)


def test_mini_has_one_factor_for_the_matrix_and_the_root_of_alpha():
  grads = [draw(6, 10, seed=n) for n in range(3)]
  got, states = run('apollo(rank=1, scaling="tensor", alpha=128.0, growth=1e6)', grads)
  plain, _ = run('apollo(rank=1, scaling="tensor", growth=1e6)', grads)
  for u, v, g in zip(got, plain, grads):
    ratio = u / np.asarray(g)
    np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-5)
    np.testing.assert_allclose(u, np.sqrt(128) * v, rtol=1e-5)
  assert states[0].adam.m['w'].shape == (1, 10)


def test_the_projection_is_of_the_seed_and_changes_every_gap_steps():
  """Without moments N is sign(R), so the update tells which P made it."""
  g = draw(6, 10)
  spec = 'apollo(rank=2, b1=0.0, b2=0.0, gap=2, growth=1e6, seed={})'
  a, _ = run(spec.format(1), [g] * 5)
  b, _ = run(spec.format(1), [g] * 5)
  c, _ = run(spec.format(2), [g])
  np.testing.assert_array_equal(a, b)
  same = [bool(np.allclose(x, y, rtol=1e-4)) for x, y in zip(a, a[1:])]
  assert same == [True, False, True, False]
  assert not np.allclose(a[0], c[0], rtol=1e-2)


def test_the_projection_keeps_lengths_on_average():
  P = np.asarray(apollo_lib.projection(0, 0, 500, 400))
  np.testing.assert_allclose(P.var(), 1 / 400, rtol=0.02)
  np.testing.assert_allclose(np.sum((P.T @ np.ones(500)) ** 2), 500, rtol=0.2)


def test_growth_is_limited_and_the_state_holds_no_projection():
  calm = draw(6, 10)
  _, states = run('apollo(rank=2, b1=0.0, b2=0.0, gap=1)', [calm] * 4)
  sizes = [float(s.norm['w'][0, 0]) for s in states]
  assert max(b / a for a, b in zip(sizes, sizes[1:])) <= 1.0101
  assert sum(x.size for x in jax.tree.leaves(states[0]) if x.ndim) == 2 * 2 * 10 + 1
  _, free = run('apollo(rank=2, b1=0.0, b2=0.0, gap=1, growth=1e6)', [calm] * 4)
  assert max(float(s.norm['w'][0, 0]) for s in free) > 1.1 * max(sizes)
