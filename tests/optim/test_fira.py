"""Fira: what is added to GaLore, and the limit on its growth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import registry
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


@pytest.mark.parametrize('shape', [(6, 10), (10, 6)])
def test_full_rank_leaves_nothing_to_add(shape):
  grads = [draw(*shape, seed=n) for n in range(4)]
  got, _ = run('fira(rank=6, b2=0.99, eps=1e-12)', grads)
  want, _ = run('galore(inner=adam(b2=0.99, eps=1e-12), rank=6)', grads)
  for a, b in zip(got, want):
    np.testing.assert_allclose(a, b, atol=2e-5)


def test_inside_the_subspace_it_is_galore():
  """P^T E = 0: what is added is orthogonal to the basis, whatever its scale by columns."""
  grads = [draw(6, 10, seed=n) for n in range(4)]
  got, states = run('fira(rank=2, b2=0.99, eps=1e-12)', grads)
  want, _ = run('galore(inner=adam(b2=0.99, eps=1e-12), rank=2)', grads)
  for a, b, s in zip(got, want, states):
    P = np.asarray(s.basis['w'])
    np.testing.assert_allclose(P.T @ a, P.T @ b, atol=2e-5)
    assert np.linalg.norm(a - P @ P.T @ a) > 0.5


@pytest.mark.parametrize('shape', [(6, 10), (10, 6)])
def test_the_rest_is_scaled_like_adam_scales_each_channel_of_the_long_side(shape):
  g = draw(*shape)
  (u,), (state,) = run('fira(rank=2, eps=1e-12)', [g])
  s, u = (np.float64(x if shape[0] == 6 else x.T) for x in (g, u))
  P = np.float64(state.basis['w'])
  r = P.T @ s  # Adam's first step is the sign of r, of norm sqrt(2) in each column
  rest = (s - P @ r) * np.sqrt(2) / np.linalg.norm(r, axis=0)
  np.testing.assert_allclose(u, 0.25 * P @ np.sign(r) + rest, atol=2e-4)


def test_leaving_out_the_scaled_projection():
  g = draw(6, 10)
  (full,), (state,) = run('fira(rank=2, eps=1e-12)', [g])
  (scaled,), _ = run('fira(rank=2, eps=1e-12, leaves="scaled")', [g])
  P = np.asarray(state.basis['w'])
  r = P.T @ g
  want = 0.75 * P @ r * np.sqrt(2) / np.linalg.norm(r, axis=0)
  np.testing.assert_allclose(scaled - full, want, atol=2e-4)


def test_a_spike_raises_the_norm_by_one_percent_a_step():
  calm = draw(6, 10)
  grads = [calm] * 3 + [100 * calm + 50 * draw(6, 10, seed=1)] * 2 + [calm / 1e3]
  _, states = run('fira(rank=2, b1=0.0, b2=0.0, gap=1)', grads)
  sizes = [float(s.norm['w'][0, 0]) for s in states]
  np.testing.assert_allclose(sizes[3] / sizes[2], 1.01, rtol=1e-4)
  np.testing.assert_allclose(sizes[4] / sizes[3], 1.01, rtol=1e-4)
  assert sizes[5] < sizes[4]


def test_a_matrix_whose_first_gradient_is_zero_is_not_held_at_zero():
  grads = [jnp.zeros((6, 10)), draw(6, 10), jnp.zeros((6, 10)), draw(6, 10, seed=1) * 100]
  got, states = run('fira(rank=2, gap=1)', grads)
  norms = [float(s.norm['w'][0, 0]) for s in states]
  assert norms[0] == 0 and norms[1] > 0.01 and norms[2] == norms[1]
  assert norms[3] <= 1.0101 * norms[2]
  assert np.linalg.norm(got[1]) > 0.1
