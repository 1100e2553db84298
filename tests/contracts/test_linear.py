"""The contract of linear parts: the map equals its dense materialisation, its bias is added once,
gradients reach every parameter.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import _table
from lmjax import registry
from lmjax.parallel import facts as facts_lib

SHAPES = {
  'matrix': ((('embed', 6),), (('mlp', 5),)),
  'heads': ((('embed', 6),), (('heads', 2), ('head_dim', 3))),
  'out': ((('heads', 2), ('head_dim', 3)), (('embed', 5),)),
  'square': ((('embed', 6),), (('mlp', 6),)),
}
each = pytest.mark.parametrize('spec', _table.SPECS['linear'])
shapes = pytest.mark.parametrize('shape', SHAPES)
biases = pytest.mark.parametrize('bias', [False, True])


@functools.cache
def instance(spec, shape, bias, role='hidden'):
  ins, outs = SHAPES[shape]
  module = registry.make('linear', spec)(
    ins=ins, outs=outs, role=role, scheme=_table.scheme(), bias=bias, parent=None
  )
  boxed = _table.abstract(module, jnp.ones((2, 3, *(n for _, n in ins))))
  if is_trained(spec):  # what is not trained is what it starts as
    values = _table.values({'params': boxed['params']})
    if 'vars' in boxed:
      x = jnp.ones((2, 3, *(n for _, n in ins)))
      values['vars'] = facts_lib.unbox(module.init(jax.random.key(0), x)['vars'])
    return module, boxed, values
  values = _table.values(boxed)
  values['vars'] = jax.tree.map(any_codes, values['vars'])
  return module, boxed, values


def is_trained(spec):
  return registry.make('linear', spec).fact('trained')


def error(spec):
  return registry.make('linear', spec).fact('error')


def any_codes(a):
  """Integers over the whole range of their type, in the place of integers."""
  if not jnp.issubdtype(a.dtype, jnp.integer):
    return a
  known = jnp.iinfo(a.dtype)
  return np.random.default_rng(3).integers(known.min, known.max + 1, a.shape).astype(a.dtype)


def sizes(shape):
  ins, outs = SHAPES[shape]
  return tuple(n for _, n in ins), tuple(n for _, n in outs)


def materialised(module, variables, shape):
  """(matrix of shape ins + outs, bias of shape outs), read off the map itself."""
  ins, outs = sizes(shape)
  n = int(np.prod(ins))
  offset = module.apply(variables, jnp.zeros((1, 1, *ins)))[0, 0]
  columns = module.apply(variables, jnp.eye(n).reshape(1, n, *ins))[0] - offset
  return np.asarray(columns).reshape(*ins, *outs), np.asarray(offset)


def test_no_part_is_missing():
  assert not _table.uncovered('linear')


@each
@shapes
@biases
def test_equals_its_dense_materialisation(spec, shape, bias):
  module, _, variables = instance(spec, shape, bias)
  ins, outs = sizes(shape)
  matrix, offset = materialised(module, variables, shape)
  x = _table.normal(2, 3, *ins, seed=5)
  flat = np.asarray(x, np.float64).reshape(6, -1) @ matrix.reshape(np.prod(ins), -1)
  _table.close(module.apply(variables, x), flat.reshape(2, 3, *outs) + offset, 1e-5 + error(spec))
  assert np.any(offset != 0) == bias


@shapes
@biases
def test_dense_is_the_matrix_and_the_bias_themselves(shape, bias):
  module, _, variables = instance('dense()', shape, bias)
  matrix, offset = materialised(module, variables, shape)
  _table.close(matrix, variables['params']['kernel'], 1e-5)
  if bias:
    _table.close(offset, variables['params']['bias'], 1e-6)


@each
@shapes
@pytest.mark.parametrize('bias', [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_gradient_reaches_every_parameter(spec, shape, bias):
  module, _, variables = instance(spec, shape, bias)
  x = _table.normal(2, 3, *sizes(shape)[0], seed=5)
  params = variables.get('params', {})
  assert bool(params) == (bias or is_trained(spec))
  total = lambda p: jnp.sum(jnp.sin(module.apply({**variables, 'params': p}, x)))
  grads = jax.grad(total)(params)
  masks = {a.shape: a for a in jax.tree.leaves(variables.get('vars', {})) if a.dtype == bool}
  for path, g in jax.tree_util.tree_leaves_with_path(grads):
    reached = np.asarray(masks.get(g.shape, np.ones(g.shape, bool)))  # a mask, where there is one
    assert reached.any() and np.array_equal(np.asarray(g) != 0, reached), jax.tree_util.keystr(path)


@each
@shapes
@pytest.mark.parametrize('role', ['hidden', 'residual'])
def test_facts_name_the_axes_and_the_role(spec, shape, role):
  ins, outs = SHAPES[shape]
  boxed = instance(spec, shape, True, role)[1]
  leaves = _table.check_facts(boxed)
  if not is_trained(spec):
    assert not any(l.fact.is_matrix for l in leaves), 'codes are no parameters'
    leaves += _table.check_facts({'params': boxed['vars']})
  matrices = [l.fact for l in leaves if l.fact.is_matrix]
  assert matrices and all(f.role == role for f in matrices)
  assert any(f.role == 'bias' for f in (l.fact for l in leaves))
  for name, _ in ins + outs:
    assert any(name in f.names for f in matrices), name
  for name, _ in ins:
    assert any(name in f.inputs for f in matrices), name


@each
@shapes
def test_the_result_has_the_dtype_of_the_input(spec, shape):
  module, _, variables = instance(spec, shape, True)
  x = _table.normal(2, 3, *sizes(shape)[0], seed=5)
  y = module.apply(variables, x.astype(jnp.bfloat16))
  assert y.dtype == jnp.bfloat16
  wide = module.apply(variables, x.astype(jnp.bfloat16).astype(jnp.float32))
  _table.close(y.astype(jnp.float32), wide, 0.02 + error(spec))
