"""The contract of positions: what is relative depends on distance alone; formulas and tables from
the papers; refusals.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import _table
from lmjax import kinds
from lmjax import registry
from lmjax.models.positions import alibi
from lmjax.models.positions import rope

ROWS = _table.SPECS['position']
each = pytest.mark.parametrize('spec', ROWS)
LENGTH, D = 12, 8


def part(spec):
  return registry.make('position', spec, length=LENGTH)(parent=None)


@functools.cache
def instance(spec):
  module = part(spec)
  boxed = _table.abstract(module, jnp.ones((1, 4, D)), _table.ctx(1, 4))
  return module, boxed, _table.values(boxed)


def add(spec, x, positions):
  return instance(spec)[0].apply(instance(spec)[2], x, _table.ctx(positions=jnp.asarray(positions)))


def ids(*values):
  return jnp.asarray([values], jnp.int32)


def test_no_part_is_missing():
  assert not _table.uncovered('position')


@each
def test_relative_parts_depend_on_distance_alone(spec):
  """q.k plus the bias, and what is added to x, must not change when all positions move."""
  module, here, x = part(spec), ids(0, 1, 2, 5), _table.normal(1, 4, D)
  q, k = _table.normal(1, 4, 2, 16, seed=1), _table.normal(1, 4, 2, 16, seed=2)

  def see(p):
    logits = jnp.einsum('bthk,bshk->bhts', module.rotate(q, p), module.rotate(k, p))
    bias = module.bias(2, p, p)
    return np.asarray(logits if bias is None else logits + bias), np.asarray(add(spec, x, p))

  (logits, added), (logits_later, added_later) = see(here), see(here + 6)
  fact = registry.make('position', spec).fact
  assert fact('relative') == (
    np.allclose(logits, logits_later, atol=1e-5) and np.array_equal(added, added_later)
  )
  assert fact('added') == (not np.array_equal(added, np.asarray(x)))


@each
def test_it_tells_positions_apart_unless_it_is_none(spec):
  module, q = part(spec), _table.normal(1, 1, 2, 16, seed=1)
  k, x = jnp.tile(_table.normal(1, 1, 2, 16, seed=2), (1, 4, 1, 1)), jnp.ones((1, 4, D))
  p = ids(0, 1, 2, 3)
  logits = jnp.einsum('bthk,bshk->hts', module.rotate(q, ids(3)), module.rotate(k, p))[:, 0]
  bias = module.bias(2, ids(3), p)
  logits = logits if bias is None else logits + bias[0, :, 0]
  by_logits = np.max(np.abs(np.diff(np.asarray(logits), axis=-1))) > 1e-3
  by_x = np.max(np.abs(np.diff(np.asarray(add(spec, x, p)), axis=1))) > 1e-3
  assert bool(by_logits or by_x) == (_table.name(spec) != 'none')


@each
def test_parameters_carry_facts(spec):
  for leaf in _table.check_facts(instance(spec)[1]):
    assert leaf.fact.role == 'position'


@each
def test_dtypes_are_kept(spec):
  low = jnp.ones((1, 2, 2, 16), jnp.bfloat16)
  assert part(spec).rotate(low, ids(3, 4)).dtype == jnp.bfloat16
  assert add(spec, jnp.ones((1, 2, D), jnp.bfloat16), ids(3, 4)).dtype == jnp.bfloat16


# ---- rope

ROPES = [s for s in ROWS if _table.name(s) == 'rope']


@pytest.mark.parametrize('spec', ROPES)
def test_rope_keeps_lengths_and_leaves_position_zero_alone(spec):
  x = _table.normal(1, 3, 2, 16)
  y = part(spec).rotate(x, ids(0, 7, 100_000))
  np.testing.assert_allclose(y[:, 0], x[:, 0], rtol=1e-6)
  np.testing.assert_allclose(jnp.linalg.norm(y, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5)
  assert np.max(np.abs(y[:, 1:] - x[:, 1:])) > 0.1


def test_rope_equals_complex_rotation_in_float64():
  x, p = _table.normal(1, 4, 1, 16), np.array([0, 1, 9, 1000])
  z = np.asarray(x[0, :, 0, 0::2], np.float64) + 1j * np.asarray(x[0, :, 0, 1::2], np.float64)
  z = z * np.exp(1j * p[:, None] * 10_000.0 ** (-np.arange(8) / 8))
  y = part('rope(pairs="interleaved")').rotate(x, jnp.asarray(p[None]))[0, :, 0]
  np.testing.assert_allclose(y[:, 0::2], z.real, atol=1e-3)
  np.testing.assert_allclose(y[:, 1::2], z.imag, atol=1e-3)


def test_half_and_interleaved_are_the_same_up_to_the_order_of_coordinates():
  x, p = _table.normal(1, 3, 2, 16), ids(1, 5, 30)
  order = np.concatenate([np.arange(0, 16, 2), np.arange(1, 16, 2)])  # interleaved -> half
  half = part('rope()').rotate(x[..., order], p)
  np.testing.assert_allclose(
    half, part('rope(pairs="interleaved")').rotate(x, p)[..., order], atol=1e-6
  )


def test_fraction_leaves_the_rest_of_each_head_alone():
  x, p = _table.normal(1, 3, 2, 16), ids(1, 5, 30)
  y = part('rope(fraction=0.5)').rotate(x, p)
  _table.same(y[..., 8:], x[..., 8:])
  np.testing.assert_allclose(y[..., :8], part('rope()').rotate(x[..., :8], p), atol=1e-6)


def plain(size=16, base=10_000.0):
  return np.array([base ** (-2 * i / size) for i in range(size // 2)])


def test_scaling_formulas():
  how = dict(base=10_000.0, factor=4.0, low=1.0, high=4.0, original=64)
  np.testing.assert_allclose(rope.rates(16, scaling='none', **how), plain())
  np.testing.assert_allclose(rope.rates(16, scaling='linear', **how), plain() / 4)
  ntk = rope.rates(16, scaling='ntk', **how)
  np.testing.assert_allclose(ntk, plain(base=10_000 * 4 ** (16 / 14)))
  np.testing.assert_allclose(
    [ntk[0], ntk[-1]], [1.0, plain()[-1] / 4]
  )  # fast waves stay, the slowest is divided by the factor


def test_llama3_scaling_wave_by_wave():
  """The published rule: waves longer than original/low are divided, shorter than original/high
  stay, linear between.
  """
  original, factor, low, high = 8192, 8.0, 1.0, 4.0
  want = []
  for r in plain(128, 500_000.0):
    wave = 2 * math.pi / r
    smooth = (original / wave - low) / (high - low)
    if wave < original / high:
      want.append(r)
    elif wave > original / low:
      want.append(r / factor)
    else:
      want.append((1 - smooth) * r / factor + smooth * r)
  got = rope.rates(128, 500_000.0, 'llama3', factor, low, high, original)
  np.testing.assert_allclose(got, want, rtol=1e-12)
  kinds_of_wave = {round(float(a / b), 6) for a, b in zip(got, plain(128, 500_000.0))}
  assert {1.0, 0.125} < kinds_of_wave


@pytest.mark.parametrize(
  'spec, word',
  [
    ('rope(base=1.0)', 'base=1.0'),
    ('rope(fraction=0.0)', 'fraction'),
    ('rope(fraction=1.5)', 'fraction'),
    ('rope(factor=0.5)', 'factor'),
    ('rope(low=4.0, high=4.0)', 'low'),
    ('rope(scaling="yarn")', 'scaling'),
  ],
)
def test_rope_refuses(spec, word):
  with pytest.raises(ValueError, match=word):
    registry.make('position', spec, length=LENGTH)


def test_rope_refuses_heads_without_a_pair():
  with pytest.raises(ValueError, match='head_dim 4'):
    part('rope(fraction=0.25)').rotate(jnp.ones((1, 1, 1, 4)), ids(0))


# ---- the others


def test_alibi_slopes_of_the_paper():
  eight = [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]
  np.testing.assert_allclose(alibi.slopes(8), eight)
  sixteen = [2 ** (-i / 2) for i in range(1, 17)]
  np.testing.assert_allclose(alibi.slopes(16), sixteen)
  np.testing.assert_allclose(alibi.slopes(12), eight + sixteen[0::2][:4])  # as in the paper's code
  np.testing.assert_allclose(alibi.slopes(1), [2.0**-8])
  assert all(len(alibi.slopes(h)) == h for h in range(1, 20))


def test_alibi_is_minus_slope_times_distance():
  bias = part('alibi()').bias(2, ids(5, 6), ids(4, 5, 6))
  np.testing.assert_allclose(bias[0, 0], -1 / 16 * np.array([[1, 0, 1], [2, 1, 0]]))
  np.testing.assert_allclose(bias[0, 1], -1 / 256 * np.array([[1, 0, 1], [2, 1, 0]]))


def test_sinusoidal_table_of_the_paper():
  p = np.array([0, 1, 2, 50])
  want = np.zeros((4, D))
  for i in range(D // 2):
    want[:, 2 * i], want[:, 2 * i + 1] = (
      np.sin(p / 10_000 ** (2 * i / D)),
      np.cos(p / 10_000 ** (2 * i / D)),
    )
  np.testing.assert_allclose(
    add('sinusoidal()', jnp.zeros((1, 4, D)), p[None])[0], 0.02 * want, atol=1e-6
  )
  odd = part('sinusoidal(scale=1.0)').apply({}, jnp.zeros((1, 1, 5)), _table.ctx(positions=ids(1)))
  assert odd.shape == (1, 1, 5)


def test_learned_looks_positions_up_and_trains_only_those():
  table = instance('learned()')[2]['params']['table']
  np.testing.assert_allclose(
    add('learned()', jnp.ones((1, 3, D)), ids(4, 0, 11))[0],
    1 + table[jnp.array([4, 0, 11])],
    rtol=1e-6,
  )

  def total(t):
    return jnp.sum(
      instance('learned()')[0].apply(
        {'params': {'table': t}}, jnp.ones((1, 2, D)), _table.ctx(positions=ids(3, 3))
      )
    )

  grad = np.asarray(jax.grad(total)(table))
  np.testing.assert_array_equal(grad.any(axis=-1), np.arange(LENGTH) == 3)
  assert np.all(grad[3] == 2)


def test_learned_refuses_longer_rows():
  with pytest.raises(kinds.Unsupported, match='13 positions, the table has 12'):
    part('learned()').init(jax.random.key(0), jnp.ones((1, 13, D)), _table.ctx(1, 13))


@pytest.mark.parametrize('spec', [s for s in ROWS if _table.name(s) == 'learned_types'])
def test_learned_types_adds_a_position_and_the_first_kind_of_text(spec):
  p, args = instance(spec)[2]['params'], _table.arguments('position', spec)
  assert p['table'].shape == (LENGTH + args['offset'], D) and len(p['types']) == args['types']
  at = np.array([4, 0, 11])
  want = 1 + np.asarray(p['table'])[at + args['offset']] + np.asarray(p['types'])[0]
  np.testing.assert_allclose(add(spec, jnp.ones((1, 3, D)), ids(*at))[0], want, rtol=1e-6)
  with pytest.raises(kinds.Unsupported, match='13 positions, the table has 12'):
    part(spec).init(jax.random.key(0), jnp.ones((1, 13, D)), _table.ctx(1, 13))
