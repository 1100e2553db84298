"""SOAP: Adam in a basis that follows the gradients' second moments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import registry
from lmjax.parallel.facts import Fact

MATRIX = Fact(('embed', 'mlp'), ('embed',))


def draw(*shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape)


def run(spec, grads, fact=MATRIX):
  tx = registry.make('optim', spec, facts=dict(w=fact))()
  params = dict(w=jnp.zeros(np.shape(grads[0])))
  state, out, states, step = tx.init(params), [], [], jax.jit(tx.update)
  for g in grads:
    u, state = step(dict(w=jnp.asarray(g, jnp.float32)), state, params)
    out.append(np.asarray(u['w']))
    states.append(state)
  return out, states


def by_the_paper(grads, every: int, b=0.95, eps=1e-8):
  """In float64, m kept in the basis and carried over when it moves, as in the public code."""
  L = (1 - b) * grads[0] @ grads[0].T
  R = (1 - b) * grads[0].T @ grads[0]
  QL, QR = (np.linalg.eigh(x)[1][:, ::-1] for x in (L, R))
  m = v = np.zeros_like(grads[0])
  out = [0 * grads[0]]
  for t, g in enumerate(grads[1:], 1):
    turned = QL.T @ g @ QR
    m, v = b * m + (1 - b) * turned, b * v + (1 - b) * turned**2
    step = np.sqrt(1 - b**t) / (1 - b**t) * m / (np.sqrt(v) + eps)
    out.append(QL @ step @ QR.T)
    L, R = b * L + (1 - b) * g @ g.T, b * R + (1 - b) * g.T @ g
    if t % every == 0:
      m = QL @ m @ QR.T
      left, right = (np.argsort(-np.diag(Q.T @ S @ Q)) for S, Q in ((L, QL), (R, QR)))
      v = v[left][:, right]
      QL, QR = np.linalg.qr(L @ QL[:, left])[0], np.linalg.qr(R @ QR[:, right])[0]
      m = QL.T @ m @ QR
  return out


@pytest.mark.parametrize('every', [1, 2, 3])
def test_equals_the_algorithm_over_many_turns(every):
  scale = np.geomspace(0.3, 3, 8)
  grads = [draw(8, 8, seed=n) * scale[:, None] * scale[::-1] for n in range(8)]
  got, _ = run(f'soap(every={every})', grads)
  for t, (u, want) in enumerate(zip(got, by_the_paper(grads, every))):
    np.testing.assert_allclose(u, want, atol=2e-3, err_msg=f'gradient {t}')


def test_turned_gradients_give_turned_updates():
  """What Adam has not: U G V^T gives U u V^T, for any rotations U and V."""
  U, V = (np.linalg.qr(draw(7, 7, seed=n))[0] for n in (8, 9))
  grads = [draw(7, 7, seed=n) for n in range(5)]
  got, _ = run('soap(every=2)', [U @ g @ V.T for g in grads])
  want, _ = run('soap(every=2)', grads)
  for a, b in zip(got[1:], want[1:]):
    np.testing.assert_allclose(a, U @ b @ V.T, atol=5e-3)


def test_the_first_gradient_makes_the_basis_and_no_step():
  g = draw(6, 6)
  (u,), (state,) = run('soap()', [g])
  assert not u.any()
  for side, stats in zip(state.sides['w'], (g @ g.T, g.T @ g)):
    np.testing.assert_allclose(side.stats, 0.05 * stats, rtol=1e-5, atol=1e-6)
    Q = np.float64(side.basis)
    np.testing.assert_allclose(Q.T @ Q, np.eye(6), atol=1e-5)
    inside = Q.T @ stats @ Q
    np.testing.assert_allclose(inside, np.diag(np.diag(inside)), atol=1e-4 * inside.max())
    assert np.all(np.diff(np.diag(inside)) < 0)
  assert not state.m['w'].any() and not state.v['w'].any()


def test_rounding_does_not_choose_the_basis_of_a_gradient_of_low_rank():
  """Of 8 directions 2 have a gradient; a last bit must not decide what the others are."""
  g = np.float32(draw(8, 2) @ draw(2, 8, seed=1))
  nudged = g * (1 + 1e-7 * np.sign(draw(8, 8, seed=2)))
  then = draw(8, 8, seed=3)
  a, _ = run('soap()', [g, then])
  b, _ = run('soap()', [nudged, then])
  np.testing.assert_allclose(a[1], b[1], atol=1e-3)


@pytest.mark.parametrize(
  'max_dim, sides', [(5, (False, False)), (6, (True, False)), (10, (True, True))]
)
def test_a_long_side_is_not_turned(max_dim, sides):
  grads = [draw(6, 10, seed=n) for n in range(4)]
  got, states = run(f'soap(max_dim={max_dim})', grads)
  assert tuple(s is not None for s in states[0].sides['w']) == sides
  stored = sum(x.size for x in jax.tree.leaves(states[0]) if x.ndim)
  assert stored == 2 * 60 + 2 * 36 * sides[0] + 2 * 100 * sides[1]
  adam = registry.make('optim', 'adam(b1=0.95, b2=0.95, eps=1e-12)')()
  s, same = adam.init(jnp.zeros((6, 10))), []
  for g, u in zip(grads[1:], got[1:]):
    want, s = adam.update(jnp.asarray(g, jnp.float32), s)
    same.append(np.allclose(u, want, atol=1e-4))
  assert all(same) != any(sides)


def test_vectors_get_adam_after_the_first():
  g = draw(6)
  got, states = run('soap()', [g, g], Fact(('embed',), (), 'norm'))
  assert not got[0].any() and states[0].sides['w'] == (None, None)
  np.testing.assert_allclose(got[1], np.sign(g), rtol=1e-4)


def test_all_heads_are_one_matrix():
  fact = Fact(('embed', 'heads', 'head_dim'), ('embed',))
  grads = [draw(6, 2, 4, seed=n) for n in range(4)]
  got, states = run('soap(every=2)', grads, fact)
  flat, _ = run('soap(every=2)', [g.reshape(6, 8) for g in grads])
  for a, b in zip(got, flat):
    np.testing.assert_allclose(a.reshape(6, 8), b, atol=1e-5)
  assert states[0].v['w'].shape == (6, 2, 4)
