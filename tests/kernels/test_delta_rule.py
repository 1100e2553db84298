"""The delta rule: chunks equal the recurrence, forward and backward, wherever documents begin."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import _table
from lmjax.kernels.delta_rule import chunked
from lmjax.kernels.delta_rule import delta_rule

B, H, K, V = 2, 3, 5, 4


def inputs(steps, seed=0, starts=(), beta=None):
  normal = lambda *shape, i: _table.normal(*shape, seed=100 * seed + i)
  q, k, v = (normal(B, steps, H, n, i=i) for i, n in enumerate((K, K, V)))
  k = k / jnp.linalg.norm(k, axis=-1, keepdims=True)
  b = jax.nn.sigmoid(normal(B, steps, H, i=3)) if beta is None else jnp.full((B, steps, H), beta)
  begins = np.zeros((B, steps), bool)
  begins[0, list(starts)] = True  # the other row is one document
  return (q, k, v, b), dict(starts_BT=jnp.asarray(begins), state_BHKV=normal(B, H, K, V, i=4))


@pytest.fixture(autouse=True)
def small(monkeypatch):
  monkeypatch.setattr(chunked, 'CHUNK', 4)


CASES = [
  (1, ()),
  (3, ()),
  (4, (2,)),
  (8, (0,)),
  (11, (4,)),  # at the edge of a chunk
  (11, (1, 3, 6)),  # two in one chunk
  (16, (5, 12)),  # none in the chunk between
  (13, tuple(range(13))),
]


def both(f, *args):
  return [jax.jit(lambda *a, i=i: f(i, *a))(*args) for i in ('chunked', 'reference')]


@pytest.mark.parametrize('steps, starts', CASES)
def test_chunks_equal_the_recurrence_and_their_gradients(steps, starts):
  arrays, more = inputs(steps, starts=starts)
  weigh = _table.normal(B, steps, H, V, seed=9), _table.normal(B, H, K, V, seed=10)

  def total(implementation, q, k, v, b, state):
    more_ = dict(more, state_BHKV=state)
    o, s = delta_rule(q, k, v, b, implementation=implementation, **more_)
    return sum(jnp.sum(jnp.sin(x) * w) for x, w in zip((o, s), weigh)), (o, s)

  f = lambda i, *a: jax.value_and_grad(lambda *a: total(i, *a), range(5), has_aux=True)(*a)
  ((_, got), got_slopes), ((_, want), want_slopes) = both(f, *arrays, more['state_BHKV'])
  _table.trees_close(got, want, 2e-6)
  _table.trees_close(got_slopes, want_slopes, 1e-5)


def test_chunks_of_the_usual_length(monkeypatch):
  monkeypatch.undo()
  assert chunked.CHUNK == 64
  arrays, more = inputs(200, starts=(70, 100))
  _table.trees_close(*both(lambda i, *a: delta_rule(*a, implementation=i, **more), *arrays), 1e-5)


def test_keys_that_are_alike_lose_no_digits(monkeypatch):
  """Powers of A, with which the inverse could be made as well, grow beyond float32's digits."""
  monkeypatch.undo()
  (q, k, v, b), _ = inputs(128, beta=0.99)
  k = jnp.broadcast_to(k[:, :1], k.shape)
  _table.trees_close(*both(lambda i, *a: delta_rule(*a, implementation=i), q, k, v, b), 1e-5)


def test_the_reference_is_its_equation_in_float64():
  (q, k, v, b), more = inputs(7, starts=(3,))
  got, last = delta_rule(q, k, v, b, implementation='reference', **more)
  q, k, v, b = (np.asarray(x, np.float64) for x in (q, k, v, b))
  for row in range(B):
    for h in range(H):
      s = np.asarray(more['state_BHKV'][row, h], np.float64)
      for t in range(7):
        s = 0 * s if more['starts_BT'][row, t] else s
        eye, key = np.eye(K), k[row, t, h][:, None]
        s = (eye - b[row, t, h] * key @ key.T) @ s + b[row, t, h] * key @ v[row, t, h][None]
        _table.close(got[row, t, h], q[row, t, h] @ s, 1e-5)
      _table.close(last[row, h], s, 1e-5)


@pytest.mark.parametrize('implementation', ('chunked', 'reference'))
def test_values_worked_by_hand(implementation):
  one = lambda *x: jnp.asarray(x, jnp.float32).reshape(1, -1, 1, 1)
  o, _ = delta_rule(
    one(1, 1), one(1, 1), one(2, 4), jnp.full((1, 2, 1), 0.5), implementation=implementation
  )
  np.testing.assert_allclose(o.ravel(), [1.0, 2.5], rtol=1e-6)
  # Rate 1 and orthonormal keys: exact recall, and the newer value of a key written twice.
  k = jnp.eye(3)[jnp.array([0, 1, 2, 0])][None, :, None]
  v = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 1, 2)), jnp.float32)
  ask = jnp.eye(3)[jnp.array([0, 1, 2])][None, :, None]
  _, s = delta_rule(k, k, v, jnp.ones((1, 4, 1)), implementation=implementation)
  got = jnp.einsum('bthk,bhkv->bthv', ask, s)
  np.testing.assert_allclose(got[0, :, 0], v[0, [3, 1, 2], 0], atol=1e-6)
  nothing = delta_rule(k, k, v, jnp.zeros((1, 4, 1)), implementation=implementation)
  assert not any(np.any(x) for x in nothing)


def test_what_is_not_there_is_refused():
  (q, k, v, b), _ = inputs(3)
  with pytest.raises(ValueError, match='chunked, reference'):
    delta_rule(q, k, v, b, implementation='pallas')
