"""Looking tokens up in a table that lies apart: rows, their gradient, and the gradient's change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import _meshes
from lmjax.nn import lookup
from lmjax.parallel import vocabulary

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason='eight devices are needed')
WORDS, WIDTH, ROWS, STEPS = 24, 8, 8, 16


def inputs():
  rng = np.random.default_rng(0)
  table = jnp.asarray(rng.normal(size=(WORDS, WIDTH)), jnp.float32)
  tokens = jnp.asarray(rng.integers(0, WORDS, (ROWS, STEPS)), jnp.int32)
  return table, tokens, jnp.asarray(rng.normal(size=(ROWS, STEPS, WIDTH)), jnp.float32)


def found(look):
  """(rows, gradient, how the gradient changes along a direction)."""
  table, tokens, weights = inputs()
  total = lambda t: jnp.sum(jnp.sin(look(t, tokens)) * weights)
  change = lambda t: jax.jvp(jax.grad(total), (t,), (jnp.cos(t),))[1]
  return jax.jit(lambda t: (look(t, tokens), jax.grad(total)(t), change(t)))(table)


@pytest.mark.parametrize(
  'axes',
  [
    dict(data=8),
    dict(tensor=8),
    dict(data=2, sequence=2, tensor=2),
    dict(stage=2, data=2, tensor=2),
    dict(replica=2, data=2, expert=2),
  ],
  ids=str,
)
def test_as_from_one_table(axes):
  want = found(lambda table, tokens: table[tokens])
  with jax.set_mesh(_meshes.make(**axes)):
    got = found(lookup.rows)
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_what_divides():
  assert not vocabulary.divides((WORDS, WIDTH), (ROWS, STEPS)), 'no mesh'
  with jax.set_mesh(_meshes.make(data=4, tensor=2)):
    assert vocabulary.divides((WORDS, WIDTH), (ROWS, STEPS))
    assert not vocabulary.divides((WORDS + 1, WIDTH), (ROWS, STEPS))
    assert not vocabulary.divides((WORDS, WIDTH + 2), (ROWS, STEPS))
    assert not vocabulary.divides((WORDS, WIDTH), (ROWS + 1, STEPS))
  with jax.set_mesh(_meshes.make(sequence=8)):
    # Each device would add up the same tokens, and the sum would count them eight times.
    assert vocabulary.divides((WORDS, WIDTH), (ROWS, STEPS))
    assert not vocabulary.divides((WORDS, WIDTH), (ROWS, STEPS + 1))
