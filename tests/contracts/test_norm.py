"""The contract of norms: declared invariances hold and undeclared do not; statistics in float32;
facts; exact values and gradients.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import _rows
import _table
from lmjax import registry

SHAPE = (2, 3, 6)


def rms_norm(x, p, a):
  y = x / np.sqrt(np.mean(x**2, -1, keepdims=True) + a['eps'])
  return y * p['scale'] if a['scale'] else y


def token_rms_norm(x, p, a):
  return rms_norm(x, p, a)


def layer_norm(x, p, a):
  y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + a['eps'])
  y = y * p['scale'] if a['scale'] else y
  return y + p['bias'] if a['bias'] else y


def pre_crmsnorm(x, p, a):
  whole = np.concatenate([x, -x.sum(-1, keepdims=True)], -1)
  y = x / np.sqrt(np.mean(whole**2, -1, keepdims=True) + a['eps'])
  return y * p['scale'] if a['scale'] else y


def power_norm(x, p, a):
  if a['groups']:
    split = x.reshape(*x.shape[:-1], a['groups'], -1)
    x = (split / np.sqrt(np.mean(split**2, -1, keepdims=True) + a['eps'])).reshape(x.shape)
  y = x / np.sqrt(p['psi2'] + a['eps'])  # what inference divides by
  y = y * p['scale'] if a['scale'] else y
  return y + p['bias'] if a['bias'] else y


REFERENCES = dict(
  rms_norm=rms_norm,
  token_rms_norm=token_rms_norm,
  layer_norm=layer_norm,
  pre_crmsnorm=pre_crmsnorm,
  power_norm=power_norm,
) | _rows.values('norm', 'reference')
each = pytest.mark.parametrize('spec', _table.SPECS['norm'])


@functools.cache
def instance(spec):
  """(module, boxed variables, stirred parameters)."""
  module = registry.make('norm', spec)(parent=None)
  boxed = module.init(jax.random.key(0), jnp.ones(SHAPE), _table.ctx())
  return module, boxed, _table.stir(boxed)


def run(spec, x, variables=None):
  module, _, stirred = instance(spec)
  return module.apply(stirred if variables is None else variables, x, _table.ctx())


def reference(spec, x, variables):
  known = {k: v for group in _table.numpy64(variables).values() for k, v in group.items()}
  return REFERENCES[_table.name(spec)](
    np.asarray(x, np.float64),
    known,
    _table.arguments('norm', spec),
  )


def test_no_part_is_missing():
  assert not _table.uncovered('norm')


@each
def test_equals_the_float64_reference(spec):
  x = _table.normal(*SHAPE, seed=1, scale=2.0) + 0.5
  _table.close(run(spec, x), reference(spec, x, instance(spec)[2]), 2e-6)


@each
def test_gradient_equals_finite_differences_of_the_reference(spec):
  x, c, variables = (
    _table.normal(*SHAPE, seed=1) + 0.5,
    _table.normal(*SHAPE, seed=2),
    instance(spec)[2],
  )
  params = variables.get('params', {})
  total = lambda x, p: jnp.sum(run(spec, x, {**variables, 'params': p}) * c)
  grads = jax.grad(total, (0, 1))(x, params)
  c64 = np.asarray(c, np.float64)
  _table.close(
    grads[0],
    _table.slope(lambda z: np.sum(reference(spec, z, variables) * c64), np.asarray(x, np.float64)),
    1e-4,
  )
  for key, value in _table.numpy64(params).items():

    def moved(z, key=key):
      return np.sum(reference(spec, x, {**variables, 'params': {**params, key: z}}) * c64)

    _table.close(grads[1][key], _table.slope(moved, value), 1e-4)


@each
@pytest.mark.parametrize(
  'fact, change', [('scale_invariant', lambda x: 8 * x), ('shift_invariant', lambda x: x + 5.0)]
)
def test_invariances_hold_exactly_where_declared(spec, fact, change):
  x = _table.normal(*SHAPE, seed=1, scale=1e3)  # large, so that eps does not matter
  if fact == 'shift_invariant':
    x = x / 1e3 * 20
  before, after = np.asarray(run(spec, x)), np.asarray(run(spec, change(x)))
  error = np.max(np.abs(after - before)) / np.max(np.abs(before))
  declared = registry.make('norm', spec).fact(fact)
  assert error < 2e-3 if declared else error > 2e-2, (declared, error)


@each
@pytest.mark.parametrize('dtype, bound', [('bfloat16', 2.0**-8), ('float16', 2.0**-11)])
def test_low_precision_input_costs_one_rounding(spec, dtype, bound):
  x = _table.normal(*SHAPE, seed=1, scale=2e3).astype(
    dtype
  )  # squares overflow in float16 unless statistics are float32
  y = run(spec, x)
  assert y.dtype == x.dtype
  want = reference(spec, np.asarray(x, np.float32), instance(spec)[2])
  assert np.all(np.abs(np.asarray(y, np.float64) - want) <= bound * (np.abs(want) + 0.02))


@each
def test_parameters_carry_facts_and_start_neutral(spec):
  _, boxed, _ = instance(spec)
  for leaf in _table.check_facts(boxed):
    assert leaf.fact.role in ('norm', 'bias') and leaf.fact.inputs == ()
    np.testing.assert_array_equal(leaf.value, 1.0 if leaf.fact.role == 'norm' else 0.0)
  a = _table.arguments('norm', spec)
  assert len(_table.check_facts(boxed)) == sum(bool(a.get(k)) for k in ('scale', 'bias'))


@each
def test_acts_on_the_last_axis_only(spec):
  x = _table.normal(*SHAPE, seed=1)
  whole = run(spec, x)
  np.testing.assert_allclose(run(spec, x[1:, 2:]), whole[1:, 2:], rtol=1e-6)
