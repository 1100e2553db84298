"""The contract of feed-forward parts: exact values and gradients, no look at other positions, the
hidden size, facts.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import _rows
import _table
from lmjax import registry

WIDTH = 12
each = pytest.mark.parametrize('spec', _table.SPECS['ffn'])


def linear(x, p):
  return x @ p['kernel'] + p.get('bias', 0.0)


def bent(h, a):
  if a['approximate']:
    return 0.5 * h * (1 + np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
  return 0.5 * h * (1 + np.vectorize(math.erf)(h / math.sqrt(2)))


def gelu(x, p, a):
  return linear(bent(linear(x, p['up']), a), p['down'])


def geglu(x, p, a):
  return linear(bent(linear(x, p['gate']), a) * linear(x, p['up']), p['down'])


def swiglu(x, p, a):
  gate = linear(x, p['gate'])
  return linear(gate / (1 + np.exp(-gate)) * linear(x, p['up']), p['down'])


def relu(x, p, a):
  return linear(np.maximum(linear(x, p['up']), 0), p['down'])


def squared_relu(x, p, a):
  return linear(np.maximum(linear(x, p['up']), 0) ** 2, p['down'])


def base_layers(x, p, a):
  """Token by token, the expert of the highest score."""
  out = np.zeros_like(x)
  for t in np.ndindex(x.shape[:-1]):
    scores = x[t] @ p['centroids']
    e, z = np.argmax(scores), x[t]
    for i in range(a['sublayers']):
      w = {k: p[f'{k}_{i}'][e] for k in ('scale', 'up', 'down')}
      b = {k: p[f'{k}_{i}'][e] if a['bias'] else 0.0 for k in ('shift', 'up_bias', 'down_bias')}
      h = (z - z.mean()) / np.sqrt(z.var() + 1e-5) * w['scale'] + b['shift']
      z = z + np.maximum(h @ w['up'] + b['up_bias'], 0) @ w['down'] + b['down_bias']
    out[t] = (z - x[t]) / (1 + np.exp(-scores[e]))
  return out


REFERENCES = dict(
  gelu=gelu,
  geglu=geglu,
  swiglu=swiglu,
  relu=relu,
  squared_relu=squared_relu,
  base_layers=base_layers,
)
REFERENCES |= _rows.values('ffn', 'reference')
HIDDEN = {  # at width 12
  'gelu()': 48,
  'gelu(approximate=False, bias=True)': 48,
  'gelu(mult=1.5, multiple_of=20)': 20,
  'relu()': 48,
  'relu(bias=True)': 48,
  'swiglu()': 32,
  'swiglu(hidden=24, bias=True)': 24,
  'swiglu(multiple_of=32)': 32,
  'geglu()': 32,
  'geglu(hidden=24, bias=True, approximate=False)': 24,
  'squared_relu()': 48,
  'squared_relu(bias=True)': 48,
  'base_layers(experts=3)': 48,
  'base_layers(experts=4, hidden=24, sublayers=2, bias=True)': 24,
}
for row in _rows.values('ffn', 'SPECS').values():
  HIDDEN |= row


@functools.cache
def instance(spec):
  module = registry.make('ffn', spec)(parent=None)
  boxed = _table.abstract(module, _table.normal(2, 5, WIDTH), _table.ctx())
  return module, boxed, _table.values(boxed)


def run(spec, x, variables=None):
  return instance(spec)[0].apply(
    instance(spec)[2] if variables is None else variables, x, _table.ctx()
  )


def test_no_part_is_missing():
  assert not _table.uncovered('ffn')
  assert set(HIDDEN) == set(_table.SPECS['ffn'])


@each
def test_equals_the_float64_reference(spec):
  x = _table.normal(2, 5, WIDTH, seed=1)
  y, aux = run(spec, x)
  assert all(np.ndim(v) == 0 for v in aux.values())
  want = REFERENCES[_table.name(spec)](
    np.asarray(x, np.float64),
    _table.numpy64(instance(spec)[2]['params']),
    _table.arguments('ffn', spec),
  )
  _table.close(y, want, 3e-6)


@each
def test_gradient_equals_finite_differences_of_the_reference(spec):
  x, c = _table.normal(1, 2, WIDTH, seed=1), _table.normal(1, 2, WIDTH, seed=2)
  variables, a = instance(spec)[2], _table.arguments('ffn', spec)
  grads = jax.grad(lambda x, v: jnp.sum(run(spec, x, v)[0] * c), (0, 1))(x, variables)
  p, c64, x64 = (
    _table.numpy64(variables['params']),
    np.asarray(c, np.float64),
    np.asarray(x, np.float64),
  )
  f = REFERENCES[_table.name(spec)]
  _table.close(grads[0], _table.slope(lambda z: np.sum(f(z, p, a) * c64), x64), 1e-4)
  leaves, tree = jax.tree.flatten(p)
  for i, got in enumerate(jax.tree.leaves(grads[1]['params'])):  # one column of each

    def total(w, i=i):
      changed = leaves[i].copy()
      changed[..., 0] = w
      moved = jax.tree.unflatten(tree, [*leaves[:i], changed, *leaves[i + 1 :]])
      return np.sum(f(x64, moved, a) * c64)

    _table.close(got[..., 0], _table.slope(total, leaves[i][..., 0]), 1e-4)


@each
def test_no_position_sees_another(spec):
  x, c = _table.normal(2, 5, WIDTH, seed=1), _table.normal(WIDTH, seed=2)
  grad = jax.grad(lambda x: jnp.sum(run(spec, x)[0][0, 2] * c))(x)
  seen = np.asarray(jnp.any(grad != 0, axis=-1))
  want = np.zeros((2, 5), bool)
  want[0, 2] = True
  np.testing.assert_array_equal(seen, want)


@each
def test_in_training_a_position_sees_others_where_the_part_says_so(spec):
  module, _, variables = instance(spec)

  @jax.jit
  def one(x):
    ctx = _table.ctx(train=True)
    return module.apply(variables, x, ctx, rngs={'dropout': jax.random.key(0)})[0][0, 2]

  x = _table.normal(2, 5, WIDTH, seed=1)
  alike = lambda s: x[0, 2] + _table.normal(2, 5, WIDTH, seed=s, scale=0.1)  # what wants the same
  found = [one(alike(s).at[0, 2].set(x[0, 2])) for s in range(2, 8)]
  seen = any(np.max(np.abs(y - found[0])) > 1e-5 for y in found)
  assert seen == (registry.make('ffn', spec).fact('couples') != 'none')


@each
def test_hidden_size_and_facts(spec):
  leaves = _table.check_facts({'params': instance(spec)[1]['params']})
  assert any(l.fact.role == 'bias' for l in leaves) == _table.arguments('ffn', spec)['bias']
  sizes = {'embed': WIDTH, 'mlp': HIDDEN[spec]}
  roles = set()
  for leaf in leaves:
    assert set(leaf.fact.names) <= {'embed', 'mlp', 'expert', None}
    for name, size in zip(leaf.fact.names, leaf.value.shape):
      assert size == sizes.get(name, size), leaf.fact
    if leaf.fact.is_matrix and 'mlp' in leaf.fact.names:
      roles.add((leaf.fact.inputs, leaf.fact.role))
  assert roles == {(('embed',), 'hidden'), (('mlp',), 'residual')}


@each
def test_bfloat16_in_bfloat16_out(spec):
  x = _table.normal(2, 5, WIDTH, seed=1).astype(jnp.bfloat16)
  y = run(spec, x)[0]
  assert y.dtype == jnp.bfloat16
  _table.close(y.astype(jnp.float32), run(spec, x.astype(jnp.float32))[0], 0.03)


@pytest.mark.parametrize(
  'spec', ['gelu(hidden=0)', 'swiglu(mult=0.0)', 'squared_relu(multiple_of=0)', 'gelu(mult=-1.0)']
)
def test_sizes_that_make_no_sense_are_refused(spec):
  with pytest.raises(ValueError, match='positive'):
    registry.make('ffn', spec)
