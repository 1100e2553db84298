"""Global clipping keeps directions and ratios, and forms the norm in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import registry


def clipped(g, **args):
  tx = registry.get('optim', 'clip').obj(**args)
  return tx.update(g, tx.init(g))[0]


def test_one_norm_over_all_tensors():
  u = clipped({'a': jnp.array([3.0, 0.0]), 'b': jnp.array([[4.0]])}, norm=1.0)
  np.testing.assert_allclose(u['a'], [0.6, 0], rtol=1e-6)
  np.testing.assert_allclose(u['b'], [[0.8]], rtol=1e-6)


@pytest.mark.parametrize('norm, rate', [(4.9, 1), (5.0, 0), (5.1, 0)])
def test_the_metric_says_whether_it_clipped(norm, rate):
  tx = registry.get('optim', 'clip').obj(norm=norm)
  g = {'a': jnp.array([3.0, 0.0]), 'b': jnp.array([[4.0]])}
  state = tx.init(g)
  assert state.metrics['clip_rate'] == 0 and tx.update(g, state)[1].metrics['clip_rate'] == rate


@pytest.mark.parametrize('norm', [5.0, 5.1])
def test_below_the_norm_nothing_changes(norm):
  g = {'a': jnp.array([3.0, 0.0]), 'b': jnp.array([[4.0]])}
  jax.tree.map(np.testing.assert_array_equal, clipped(g, norm=norm), g)


def test_half_precision_neither_overflows_nor_drifts():
  """300^2 is beyond float16; a sum of 257 times 4 in bfloat16 stops at 1024."""
  np.testing.assert_allclose(clipped(jnp.array([300.0, 400.0], jnp.float16)), [0.6, 0.8], rtol=1e-3)
  g = {str(i): jnp.full((4,), 1.0, jnp.bfloat16) for i in range(257)}
  u = clipped(g, norm=1.0)
  np.testing.assert_allclose(float(u['0'][0]), 1 / np.sqrt(4 * 257), rtol=2.0**-8)


def test_a_gradient_that_is_not_finite_stays_so():
  """The step, not the optimizer, decides what to do with it; clipping must not hide it."""
  for bad in (jnp.nan, jnp.inf):
    assert not np.all(np.isfinite(clipped(jnp.array([bad, 1.0]))))
