"""Uniform grids: the scale and the zero point of groups of numbers, and rounding to them.

  symmetric   s = max |w| / (2^(b-1) - 1), z = 2^(b-1)
  asymmetric  s = (hi - lo) / (2^b - 1), z = round(-lo / s), lo = min(w, 0), hi = max(w, 0)
  q = clip(round(w / s) + z, 0, 2^b - 1), w^ = s (q - z)

so that a symmetric code q - z is in -2^(b-1) ... 2^(b-1) - 1. Halves round to even. s is at least
1e-5, and is rounded up to what float16 can hold, so that no number of the group leaves the range.

`clip` looks for the range that rounds best: both ends times p in {1, 0.99, ..., 0.2}, the least sum
|w - w^|^2.4 of each group (the constants of GPTQ's published code; Frantar et al., 2022,
arXiv:2210.17323).
"""

import functools

import jax
import jax.numpy as jnp

SMALLEST, POWER, LEAST = 1e-5, 2.4, 20  # LEAST: of p, in hundredths


def up(x, dtype):
  """x in a narrower dtype, never below x."""
  if dtype == jnp.float32:
    return x
  near = x.astype(dtype)
  bits = jax.lax.bitcast_convert_type(near, jnp.uint16)
  above = jax.lax.bitcast_convert_type(bits + jnp.uint16(1), dtype)  # x is positive
  return jnp.where(near.astype(jnp.float32) < x, above, near).astype(jnp.float32)


def fit(w, bits: int, symmetric: bool, axis: int = 0, clip: bool = False, dtype=jnp.float16):
  """(scale, zero), float32, of the numbers along an axis, which is kept as an axis of 1."""
  low, high = jnp.min(w, axis, keepdims=True), jnp.max(w, axis, keepdims=True)
  make = functools.partial(_grid, low, high, bits=bits, symmetric=symmetric, dtype=dtype)
  if not clip:
    return make(1.0)

  def tried(i, best):
    grid = make(1.0 - i / 100)
    error = jnp.sum(
      jnp.abs(w - decode(encode(w, *grid, bits), *grid)) ** POWER, axis, keepdims=True
    )
    better = error < best[0]
    return tuple(jnp.where(better, a, b) for a, b in zip((error, *grid), best))

  start = (jnp.full_like(low, jnp.inf), *make(1.0))
  return jax.lax.fori_loop(0, 101 - LEAST, tried, start)[1:]


def _grid(low, high, p, *, bits: int, symmetric: bool, dtype):
  if symmetric:
    scale = p * jnp.maximum(-low, high) / (2 ** (bits - 1) - 1)
    scale = up(jnp.maximum(scale, SMALLEST), dtype)
    return scale, jnp.full_like(scale, 2.0 ** (bits - 1))
  low, high = p * jnp.minimum(low, 0.0), p * jnp.maximum(high, 0.0)
  scale = up(jnp.maximum((high - low) / (2**bits - 1), SMALLEST), dtype)
  return scale, jnp.round(-low / scale)


def encode(w, scale, zero, bits: int):
  """Codes 0 ... 2^bits - 1, as floats."""
  return jnp.clip(jnp.round(w / scale) + zero, 0, 2**bits - 1)


def decode(codes, scale, zero):
  return scale * (codes - zero)


def nearest(w_IO, bits: int, symmetric: bool, group: int | None, per: str, clip: bool):
  """(codes (I, O), scale, zero) of rounding to nearest; scales are (groups, O), or (1, 1)."""
  size, outs = w_IO.shape
  shape = (1, size * outs, 1) if per == 'tensor' else (-1, group or size, outs)
  grouped = w_IO.astype(jnp.float32).reshape(shape)
  scale, zero = fit(grouped, bits, symmetric, 1, clip)
  return encode(grouped, scale, zero, bits).reshape(size, outs), scale[:, 0], zero[:, 0]


def found(codes_IO, scale, zero) -> dict:
  """What a quantizer gives, in bytes; scale and zero as they are stored."""
  small = lambda x: x.astype(jnp.uint8)
  return dict(codes=small(codes_IO), scale=scale.astype(jnp.float16), zero=small(zero))
