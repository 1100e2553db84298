"""The stable embedding: first values, the norm in front of positions, the two outputs, and its
exemption from 8 bits.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import _table
from lmjax import registry
from lmjax.parallel import facts as facts_lib

V, WIDTH = 500, 24


def module(spec, width=WIDTH):
  return registry.make('embed', spec, vocab=V, width=width, dtype=jnp.float32)(parent=None)


def tokens():
  return jnp.asarray(np.random.default_rng(0).integers(0, V, (4, 10)), jnp.int32)


@functools.cache
def variables(spec, init='gpt2()'):
  ctx = _table.ctx(4, init=init)
  return facts_lib.unbox(module(spec).init(jax.random.key(0), tokens(), ctx))


@pytest.mark.parametrize('init', ['gpt2()', 'fan_in(embed=5.0)'])
@pytest.mark.parametrize('spec, rows', [('stable()', 500), ('stable(multiple_of=64)', 512)])
def test_the_table_starts_uniform_after_xavier(spec, rows, init):
  table = np.asarray(variables(spec, init)['params']['table'])
  bound = math.sqrt(6 / (rows + WIDTH))
  assert table.shape == (rows, WIDTH)
  assert 0.999 * bound < np.abs(table).max() <= bound
  assert abs(table.std() * math.sqrt(3) / bound - 1) < 0.02


def test_vectors_have_mean_0_and_variance_1_before_positions_are_added():
  x, *_ = module('stable()').apply(variables('stable()'), tokens(), _table.ctx(4))
  np.testing.assert_allclose(np.mean(x, -1), 0, atol=1e-6)
  np.testing.assert_allclose(np.var(x, -1), 1, rtol=0.01)  # eps
  net = _table.model(embed='stable()', position='learned()', depth=1)
  params = dict(_table.model_params(embed='stable()', position='learned()', depth=1)['params'])
  batch = _table.batch(np.ones((2, 10)))['tokens']

  def into(position):
    moved = params | {'position': {'table': params['position']['table'] + position}}
    out = net.apply({'params': moved}, batch, _table.ctx(), capture_intermediates=True)
    return out[1]['intermediates']['position']['__call__'][0]

  shift = jnp.arange(10.0)[:, None] * jnp.ones(32)  # a norm behind the positions would undo it
  np.testing.assert_allclose(
    into(shift) - into(0.0), jnp.broadcast_to(shift, (2, 10, 32)), atol=1e-5
  )


def test_the_output_is_the_table_itself_or_a_matrix_of_its_own():
  tied, own = variables('stable()'), variables('stable(tied=False)')
  _, unembed, _ = module('stable()').apply(tied, tokens(), _table.ctx(4))
  np.testing.assert_array_equal(unembed, tied['params']['table'])
  assert set(tied['params']) == {'table', 'norm'}
  _, unembed, _ = module('stable(tied=False)').apply(own, tokens(), _table.ctx(4))
  np.testing.assert_array_equal(unembed, own['params']['unembed'])
  np.testing.assert_allclose(np.std(unembed), 0.02, rtol=0.05)  # as model.init says
  assert not registry.make('embed', 'stable(tied=False)').fact('tied')


def test_gain_and_bias_of_the_norm_act_on_the_vectors():
  found = variables('stable(scale=3.0)')
  norm = dict(scale=jnp.full(WIDTH, 2.0), bias=jnp.full(WIDTH, 0.5))
  x, *_ = module('stable(scale=3.0)').apply(
    {'params': found['params'] | {'norm': norm}}, tokens(), _table.ctx(4)
  )
  np.testing.assert_allclose(np.mean(x, -1), 1.5, rtol=1e-4)
  np.testing.assert_allclose(np.std(x, -1), 6, rtol=0.01)


def test_eight_bit_keeps_the_states_of_the_table_in_32():
  made = module('stable(tied=False)')
  boxed = _table.abstract(made, tokens(), _table.ctx(4))
  facts, params = facts_lib.facts(boxed)['params'], variables('stable(tied=False)')['params']
  state = registry.make('optim', 'eight_bit(min_size=1)', facts=facts)().init(params)
  assert state.codes.mu['table'].dtype == jnp.float32
  assert state.codes.mu['unembed'].dtype == jnp.uint8


def test_refusals():
  with pytest.raises(ValueError, match='stable.norm=None: a norm is expected'):
    registry.make('embed', 'stable(norm=None)')
  with pytest.raises(ValueError, match='stable: multiple_of=0'):
    registry.make('embed', 'stable(multiple_of=0)')
