"""Clipping by value cuts entries and turns the gradient."""

import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import registry


def clipped(g, spec='clip_value()'):
  parts = registry.make_chain('optim', spec, facts={})
  for part in [p for _, p in parts.items()]:
    tx = part()
    g, state = tx.update(g, tx.init(g))
  return g, state


def test_entries_are_cut_on_both_sides():
  g = {'a': jnp.array([-3.0, 0.5]), 'b': jnp.array([[2.0]])}
  u, state = clipped(g, 'clip_value(bound=0.75)')
  np.testing.assert_array_equal(u['a'], [-0.75, 0.5])
  np.testing.assert_array_equal(u['b'], [[0.75]])
  assert float(state.metrics['clip_rate']) == pytest.approx(2 / 3)


def test_entries_at_the_bound_are_not_counted():
  u, state = clipped(jnp.array([1.0, -1.0]))
  np.testing.assert_array_equal(u, [1, -1])
  assert state.metrics['clip_rate'] == 0


def test_behind_adam_no_coordinate_moves_further_than_the_learning_rate():
  """Adam's own step reaches 1 / sqrt(1 - b2) when a gradient follows silence."""
  tx = registry.make('optim', 'adam(b1=0.0, b2=0.95)', facts={})()
  state = tx.init(jnp.zeros(1))
  for _ in range(50):
    _, state = tx.update(jnp.zeros(1), state)
  u, _ = tx.update(jnp.ones(1), state)
  assert u > 4
  np.testing.assert_array_equal(clipped(u)[0], 1.0)


def test_half_precision_and_what_is_not_finite():
  u, state = clipped(jnp.array([6e4, 0.25], jnp.float16), 'clip_value(bound=7e4)')
  np.testing.assert_array_equal(u, jnp.array([6e4, 0.25], jnp.float16))
  assert u.dtype == jnp.float16 and state.metrics['clip_rate'] == 0
  assert np.isnan(clipped(jnp.array([jnp.nan]))[0])
