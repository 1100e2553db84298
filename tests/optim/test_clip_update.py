"""Clipping by the RMS of each tensor of each layer."""

import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import registry
from lmjax.parallel.facts import Fact

MATRIX = Fact(('embed', 'mlp'), ('embed',))


def clipped(u, fact, **args):
  tx = registry.get('optim', 'clip_update').obj(facts={'w': fact}, **args)
  return tx.update({'w': u}, tx.init({'w': u}))[0]['w']


def test_by_hand():
  u = jnp.array([[1.0, 1.0], [1.0, 10.0]])  # RMS sqrt(103 / 4) = 5.0744458
  np.testing.assert_allclose(clipped(u, MATRIX), u / 5.0744458, rtol=1e-6)
  np.testing.assert_allclose(clipped(u, MATRIX, rms=2.0), u * 2 / 5.0744458, rtol=1e-6)
  np.testing.assert_array_equal(clipped(u, MATRIX, rms=5.08), u)


@pytest.mark.parametrize(
  'fact',
  [Fact(('layers', 'embed', 'mlp'), ('embed',)), Fact(('expert', 'embed', 'mlp'), ('embed',))],
)
def test_a_loud_layer_does_not_quiet_the_others(fact):
  u = jnp.stack([jnp.full((2, 3), 0.5), jnp.full((2, 3), 100.0)])
  np.testing.assert_allclose(clipped(u, fact), jnp.stack([u[0], u[1] / 100]), rtol=1e-6)


def test_vectors_and_scalars_too():
  np.testing.assert_allclose(
    clipped(jnp.array([3.0, 4.0]), Fact(('embed',), (), 'norm'), rms=1.0),
    np.array([3, 4]) / np.sqrt(12.5),
    rtol=1e-6,
  )
  np.testing.assert_allclose(clipped(jnp.float32(-4.0), Fact((), (), 'other')), -1.0)
  gates = Fact(('layers',), (), 'other')  # one scalar a layer
  np.testing.assert_allclose(clipped(jnp.array([-4.0, 0.5]), gates), [-1.0, 0.5])


def test_half_precision_does_not_overflow():
  u = jnp.full((2, 2), 500.0, jnp.float16)
  np.testing.assert_allclose(clipped(u, MATRIX), np.ones((2, 2)), rtol=1e-3)


def test_the_metric_is_the_share_of_tensors():
  facts = {'w': MATRIX, 'v': Fact(('layers', 'embed'), (), 'norm')}
  tx = registry.get('optim', 'clip_update').obj(facts=facts)
  u = {'w': jnp.full((2, 2), 0.5), 'v': jnp.array([[3.0, 3.0], [0.1, 0.1]])}
  _, state = tx.update(u, tx.init(u))
  assert float(state.metrics['clip_rate']) == pytest.approx(1 / 3)
