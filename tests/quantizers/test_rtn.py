"""Round to nearest: grids worked out by hand, bounds of the error, which numbers share a scale."""

import jax.numpy as jnp
import numpy as np
import pytest

import _table
from lmjax import registry
from lmjax.quantizers import _grid

F32 = jnp.float32


def quantized(w_IO, spec):
  """(codes, scale, zero, w^) of a part, groups spread over their inputs."""
  found = registry.make('quantizer', spec)().quantize(jnp.asarray(w_IO, F32))
  codes, scale, zero = (np.asarray(found[k], np.float64) for k in ('codes', 'scale', 'zero'))
  each = lambda a: np.broadcast_to(np.repeat(a, len(codes) // len(a), axis=0), codes.shape)
  scale, zero = each(scale), each(zero)
  return codes, scale, zero, scale * (codes - zero)


def test_four_bits_by_hand():
  w = jnp.asarray([-1.0, -0.2, 0.32, 2.0])
  scale, zero = _grid.fit(w, 4, symmetric=False, dtype=F32)
  np.testing.assert_allclose(scale, [0.2], rtol=1e-6)
  assert zero.tolist() == [5.0]
  codes = _grid.encode(w, scale, zero, 4)
  assert codes.tolist() == [0, 4, 7, 15]
  np.testing.assert_allclose(_grid.decode(codes, scale, zero), [-1, -0.2, 0.4, 2], atol=1e-6)


def test_symmetric_by_hand():
  """The largest number has the code 2^(b-1) - 1; -2^(b-1) is there, for what GPTQ moves."""
  w = jnp.asarray([-7.0, 3.2, 0.4, 1.0])
  scale, zero = _grid.fit(w, 4, symmetric=True, dtype=F32)
  assert scale.tolist() == [1.0] and zero.tolist() == [8.0]
  assert (_grid.encode(w, scale, zero, 4) - 8).tolist() == [-7, 3, 0, 1]
  beyond = jnp.asarray([-8.0, -90.0, 7.6, 90.0])
  assert (_grid.encode(beyond, scale, zero, 4) - 8).tolist() == [-8, -8, 7, 7]


def test_halves_round_to_even():
  w = jnp.asarray([0.5, 1.5, 2.5, 7.0])
  scale, zero = _grid.fit(w, 4, symmetric=True, dtype=F32)
  assert (_grid.encode(w, scale, zero, 4) - 8).tolist() == [0, 2, 2, 7]


def test_scales_have_a_floor_and_zeros_stay_zeros():
  scale, zero = _grid.fit(jnp.zeros(3), 4, symmetric=False, dtype=F32)
  assert scale.tolist() == [np.float32(1e-5)]
  assert _grid.decode(_grid.encode(jnp.zeros(3), scale, zero, 4), scale, zero).tolist() == [0] * 3


@pytest.mark.parametrize('bits', [2, 3, 4, 5, 8])
@pytest.mark.parametrize('symmetric', [False, True])
@pytest.mark.parametrize('shift', [0.0, 3.0, -0.4])
def test_the_error_is_at_most_half_a_step_and_codes_are_kept(bits, symmetric, shift):
  """Also with scales in float16: rounding one down would put the largest number out of range."""
  w = np.asarray(_table.normal(64, 40, seed=bits)) + shift
  spec = f'rtn(bits={bits}, group=16, symmetric={symmetric})'
  codes, scale, zero, near = quantized(w, spec)
  assert codes.min() >= 0 and codes.max() <= 2**bits - 1
  assert np.all(np.abs(w - near) <= scale / 2 * (1 + 1e-5))
  if symmetric:  # a grid fitted to its own points is the same one
    np.testing.assert_allclose(quantized(near, spec)[3], near, atol=2e-3 * np.abs(near).max())
  exact = _grid.encode(
    jnp.asarray(near, F32), jnp.asarray(scale, F32), jnp.asarray(zero, F32), bits
  )
  assert np.array_equal(exact, codes)


def test_groups_are_of_inputs_of_one_output():
  """A large number changes the steps of its own group and output alone."""
  w = np.asarray(_table.normal(12, 5, seed=1))
  large = w.copy()
  large[5, 2] = 50.0
  before, after = (quantized(x, 'rtn(bits=4, group=4)')[1] for x in (w, large))
  changed = np.argwhere(before != after)
  assert {(i, o) for i, o in changed.tolist()} == {(i, 2) for i in range(4, 8)}


@pytest.mark.parametrize('spec, shape', [('rtn(bits=4)', (1, 5)), ('rtn(bits=4, group=4)', (3, 5))])
def test_scales_are_those_of_numpy(spec, shape):
  w = np.asarray(_table.normal(12, 5, seed=1), np.float64)
  found = registry.make('quantizer', spec)().quantize(jnp.asarray(w, F32))
  g = w.reshape(shape[0], -1, 5)
  want = (np.maximum(g.max(1), 0) - np.minimum(g.min(1), 0)) / 15
  assert found['scale'].shape == shape
  np.testing.assert_allclose(np.float64(found['scale']), want, rtol=1e-3)


def test_one_scale_for_a_tensor():
  w = np.asarray(_table.normal(12, 5, seed=1), np.float64)
  codes, scale, _, near = quantized(w, 'rtn(bits=8, per="tensor", symmetric=True)')
  np.testing.assert_allclose(scale, np.abs(w).max() / 127, rtol=1e-3)
  assert np.abs(w - near).max() <= scale.max() / 2 * (1 + 1e-5)


@pytest.mark.parametrize('symmetric', [False, True])
def test_clip_takes_the_range_of_least_error(symmetric):
  """Against every range tried one by one in NumPy."""
  w = np.asarray(_table.normal(40, 3, seed=2) ** 3, np.float64)

  def tried(p):
    low, high = (p * f(x, 0) for f, x in ((np.minimum, w.min(0)), (np.maximum, w.max(0))))
    if symmetric:
      scale = np.maximum(-low, high) / 3
      zero = np.full(3, 4.0)
    else:
      scale = (high - low) / 7
      zero = np.round(-low / scale)
    near = scale * (np.clip(np.round(w / scale) + zero, 0, 7) - zero)
    return (np.abs(w - near) ** 2.4).sum(0)

  best = np.min([tried(1 - i / 100) for i in range(81)], axis=0)
  x = jnp.asarray(w, F32)
  error = {}
  for clip in (False, True):
    scale, zero = _grid.fit(x, 3, symmetric, clip=clip, dtype=F32)
    near = _grid.decode(_grid.encode(x, scale, zero, 3), scale, zero)
    error[clip] = (np.abs(w - np.asarray(near, np.float64)) ** 2.4).sum(0)
  np.testing.assert_allclose(error[True], best, rtol=1e-3)
  assert np.all(error[True] < error[False])


def test_up_never_goes_down():
  x = jnp.asarray(np.random.default_rng(0).lognormal(size=500), F32)
  y = _grid.up(x, jnp.float16)
  assert np.all(y >= x) and np.all(y <= x * (1 + 2**-9))
  assert np.array_equal(y, y.astype(jnp.float16).astype(F32))
  exact = jnp.asarray([0.25, 1.0, 3.0])
  assert np.array_equal(_grid.up(exact, jnp.float16), exact)


@pytest.mark.parametrize(
  'spec, said',
  [
    ('rtn(bits=1)', 'bits=1: from 2 to 8 is expected'),
    ('rtn(bits=9)', 'bits=9: from 2 to 8 is expected'),
    ('rtn(bits=4, group=0)', 'group=0: a positive number of inputs'),
    ('rtn(bits=4, group=8, per="tensor")', 'group=8: None is expected'),
    ('gptq(bits=16)', 'bits=16: from 2 to 8 is expected'),
    ('gptq(bits=4, damp=0.0)', 'damp=0.0: a positive number'),
    ('gptq(bits=4, block=0)', 'block=0: a positive number'),
    ('llm_int8(tau=-1.0)', 'tau=-1.0: at least 0'),
    ('llm_int8(keep=2, tau=None)', 'keep=2: from 0 to 1000 rows, and 0 where tau=None'),
    ('llm_int8(keep=1001)', 'keep=1001: from 0 to 1000 rows'),
    ('llm_int8(scaling="columns")', 'scaling'),
    ('awq()', "no quantizer named 'awq'"),
  ],
)
def test_arguments_out_of_range_are_refused(spec, said):
  with pytest.raises(ValueError, match=said):
    registry.make('quantizer', spec)
