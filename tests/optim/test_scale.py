"""Which axis is normalized, who has momentum, and what SCALE cannot do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import registry
from lmjax.parallel.facts import Fact

FACTS = {
  'embed': Fact(('vocab', 'embed'), ('vocab',), 'embed'),
  'query': Fact(('layers', 'embed', 'heads', 'head_dim'), ('embed',)),
  'out': Fact(('layers', 'heads', 'head_dim', 'embed'), ('heads', 'head_dim'), 'residual'),
  'gain': Fact(('layers', 'embed'), (), 'norm'),
  'head': Fact(('vocab', 'embed'), ('embed',), 'unembed'),
}
SHAPES = dict(embed=(7, 4), query=(2, 4, 2, 3), out=(2, 2, 3, 4), gain=(2, 4), head=(7, 4))
CONTRACTED = dict(embed=(0,), query=(1,), out=(1, 2), head=(1,))


def draw(seed=0):
  rng = np.random.default_rng(seed)
  return {k: jnp.asarray(rng.standard_normal(s), jnp.float32) for k, s in SHAPES.items()}


def make(spec='scale()', facts=FACTS):
  return registry.make('optim', spec, facts=facts)()


def steps(grads, spec='scale()'):
  tx = make(spec)
  state = tx.init(draw())
  for g in grads:
    u, state = tx.update(g, state)
  return u, state


def test_every_output_unit_moves_with_unit_rms():
  """A token of the head, a feature of the embedding, a head's coordinate of the query."""
  u, _ = steps([draw()])
  for k, axes in CONTRACTED.items():
    np.testing.assert_allclose(np.mean(np.square(u[k]), axis=axes), 1.0, rtol=1e-5, err_msg=k)
    assert np.mean(np.square(u[k]), axis=axes).size > 1


def test_multiplying_the_loss_changes_no_matrix():
  g = draw()
  one, two = steps([g])[0], steps([jax.tree.map(lambda x: 1e3 * x, g)])[0]
  for k in CONTRACTED:
    np.testing.assert_allclose(one[k], two[k], rtol=1e-5)


def test_only_the_head_remembers_and_vectors_are_adams():
  """m = 0.9 . 0.1 a + 0.1 b; its size does not matter, its direction does."""
  a, b = draw(), draw(1)
  u, _ = steps([a, b])
  m = np.asarray(0.09 * a['head'] + 0.1 * b['head'], np.float64)
  np.testing.assert_allclose(
    u['head'], m / np.sqrt(np.mean(m**2, axis=1, keepdims=True)), rtol=1e-5
  )
  alone, _ = steps([b])
  for k in ('embed', 'query', 'out'):
    np.testing.assert_array_equal(u[k], alone[k])
  m = (0.9 * 0.1 * a['gain'] + 0.1 * b['gain']) / (1 - 0.9**2)
  v = (0.999 * 0.001 * a['gain'] ** 2 + 0.001 * b['gain'] ** 2) / (1 - 0.999**2)
  np.testing.assert_allclose(u['gain'], m / (np.sqrt(v) + 1e-8), rtol=1e-3)


def test_bytes_of_state():
  state = jax.eval_shape(make().init, draw())
  stored = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state) if x.ndim)
  assert stored == 4 * 7 * 4 + 8 * 2 * 4


def test_silent_units_stay():
  """A token that never occurs has a zero row in the embedding's gradient and, in a batch without
  any, zero columns nowhere: nothing is divided by nothing.
  """
  g = draw()
  g['embed'] = g['embed'].at[2].set(0.0)
  g['head'] = g['head'].at[3].set(0.0)
  g['query'] = g['query'] * 0
  u, _ = steps([g])
  np.testing.assert_array_equal(u['embed'][2], 0)
  np.testing.assert_array_equal(u['head'][3], 0)
  np.testing.assert_array_equal(u['query'], 0)
  tiny, _ = steps([jax.tree.map(lambda x: 1e-12 * x, draw())])
  assert np.abs(tiny['query']).max() < 1e-3, 'below eps the update fades'


def test_half_precision():
  g = jax.tree.map(lambda x: (500 * x).astype(jnp.float16), draw())
  u, _ = steps([g])
  for k, axes in CONTRACTED.items():
    assert u[k].dtype == jnp.float16
    wide = np.asarray(u[k], np.float64)
    np.testing.assert_allclose(np.mean(wide**2, axis=axes), 1.0, rtol=5e-3)


def test_a_tied_table_is_refused():
  tied = {k: f for k, f in FACTS.items() if k != 'head'}
  with pytest.raises(ValueError, match=r'config\.model\.embed=untied\(\)'):
    make(facts=tied)
