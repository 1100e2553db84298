"""The contract of quantizers: what a part gives is what its linear part stores, is the matrix up to
the grid's steps, and needs what its facts say.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import _table
from lmjax import kinds
from lmjax import registry

INS, OUTS = (('embed', 24),), (('heads', 2), ('head_dim', 5))
SIZE, COUNT = 24, 10
each = pytest.mark.parametrize('spec', _table.SPECS['quantizer'])


def kernel():
  return _table.normal(SIZE, COUNT, seed=1)


@functools.cache
def inputs():
  x = np.asarray(_table.normal(50, SIZE, seed=2) @ _table.normal(SIZE, SIZE, seed=3))
  return kinds.Inputs(2 / 50 * x.T @ x, np.abs(x).max(axis=0))


@functools.cache
def made(spec):
  """(part, its linear part as a module, what it gives)."""
  part = registry.make('quantizer', spec)
  quantizer = part()
  linear = registry.make('linear', quantizer.linear)
  module = linear(
    ins=INS, outs=OUTS, role='hidden', bias=False, scheme=_table.scheme(), parent=None
  )
  given = inputs() if part.fact('calibration') else None
  return part, linear, module, quantizer.quantize(kernel(), given)


def test_no_part_is_missing():
  assert not _table.uncovered('quantizer')


@each
def test_the_linear_part_stores_what_is_given(spec):
  _, linear, module, found = made(spec)
  assert not linear.fact('trained')
  stored = module.stored(found)
  want = _table.abstract(module, jnp.ones((1, 1, SIZE)))['vars']
  assert {k: (v.shape, v.dtype) for k, v in stored.items()} == {
    k: (b.value.shape, b.value.dtype) for k, b in want.items()
  }
  assert sum(v.nbytes for v in stored.values()) < 0.8 * kernel().nbytes


@each
def test_the_product_is_that_of_the_matrix_up_to_rounding(spec):
  _, _, module, found = made(spec)
  x = np.asarray(_table.normal(7, 3, SIZE, seed=4))
  got = module.apply({'vars': module.stored(found)}, x).reshape(-1, COUNT)
  want = x.reshape(-1, SIZE) @ np.asarray(kernel())
  bits = dict(registry.make('quantizer', spec).args).get('bits', 8)
  worst = np.linalg.norm(got - want) / np.linalg.norm(want)
  assert 1e-6 < worst < 1.5 * 2.0**-bits * 2, worst


@each
def test_the_same_matrix_gives_the_same_codes(spec):
  part, _, _, found = made(spec)
  given = inputs() if part.fact('calibration') else None
  again = part().quantize(kernel(), given)
  jax.tree.map(_table.same, again, found)


@each
def test_a_part_that_needs_no_inputs_says_so(spec):
  """Inputs change the codes of a part exactly where its fact says that it asks for them."""
  part, _, _, found = made(spec)
  other = kinds.Inputs(inputs().hessian_II[::-1, ::-1], inputs().largest_I[::-1])
  got = part().quantize(kernel(), other)
  same = all(np.array_equal(got[k], found[k]) for k in found)
  assert same != part.fact('calibration')
