"""Folding: which device holds which chunk, and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import _meshes
from lmjax.parallel import folding

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason='eight devices are needed')


@pytest.mark.parametrize(
  'axes', [dict(sequence=8), dict(data=2, sequence=4), dict(data=2, sequence=2, tensor=2)], ids=str
)
def test_a_device_holds_a_chunk_of_each_half(axes):
  n, steps = axes['sequence'], 32
  x_BTD = np.arange(4 * steps * 3.0).reshape(4, steps, 3)
  names, c = ('batch', 'time', 'width'), steps // (2 * n)
  chunks = lambda i: [*range(i * c, (i + 1) * c)]
  order = sum((chunks(i) + chunks(2 * n - 1 - i) for i in range(n)), [])
  with jax.set_mesh(_meshes.make(**axes)):
    assert folding.folds(steps) and not folding.folds(steps - n) and not folding.folds(1)
    folded = jax.jit(lambda x: folding.fold(x, *names))(x_BTD)
    np.testing.assert_array_equal(folded, x_BTD[:, order])
    assert {s.data.shape[1] for s in folded.addressable_shards} == {2 * c}
    np.testing.assert_array_equal(jax.jit(lambda x: folding.unfold(x, *names))(folded), x_BTD)
    flat = jax.jit(lambda x: folding.fold(x, 'batch', 'time'))(jnp.asarray(x_BTD[..., 0]))
    np.testing.assert_array_equal(flat, x_BTD[:, order, 0])


def test_without_the_axis_nothing_folds():
  assert not folding.folds(32)
  with jax.set_mesh(_meshes.make(data=8)):
    assert not folding.folds(32)
