"""The kernels of `mosaic`. In tiles of logits words lie along sublanes and tokens along lanes, so
that sums over words are plain additions and a token's numbers are rows.

Axes: N tokens, V words, D width, all of whole tiles; S of them that stay, M that move by.
"""

import functools
from typing import NamedTuple

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from lmjax.kernels import precision
from lmjax.kernels.linear_cross_entropy import _streamed
from lmjax.kernels.linear_cross_entropy import mosaic

LIMIT = 60 * 2**20  # bytes, of tiles and what the compiler adds
LEAST = -3e38  # below every logit


class Laid(NamedTuple):
  """Operands in whole tiles; rows: (1, N) of each token; bias: () or the (1, V) one; tokens, words:
  of a tile (that stay, that move by).
  """

  x_ND: jax.Array
  unembed_VD: jax.Array
  rows: tuple
  bias: tuple
  tokens: tuple[int, int]
  words: tuple[int, int]

  @property
  def shape(self) -> tuple[int, int, int]:
    return *self.x_ND.shape, len(self.unembed_VD)


def _laid(x_ND, unembed_VD, bias_V, target_N, *rows) -> Laid:
  (n, width), words = x_ND.shape, len(unembed_VD)
  stay, by = mosaic.tile(width, x_ND.dtype.itemsize)

  def tiles(size):
    held = min(stay, max(mosaic.LANES, pl.next_power_of_2(size)))
    return held, min(held, by)

  across = tiles(n), tiles(words)
  longer, most = (_streamed.upwards(size, t[0]) for size, t in zip((n, words), across))
  wide = _streamed.upwards(width, mosaic.LANES)
  bias = _streamed.biases(bias_V, words, most)
  target = _streamed.padded(target_N, longer, value=-1)
  return Laid(
    _streamed.padded(x_ND, longer, wide),
    _streamed.padded(unembed_VD, most, wide),
    tuple(a[None] for a in (target, *(_streamed.padded(a, longer) for a in rows))),
    () if bias is None else (bias[None],),
    *across,
  )


def _sums(rule, x_ND, unembed_VD, bias_V, target_N):
  given = _laid(x_ND, unembed_VD, bias_V, target_N)
  many = 4 if rule.label_smoothing else 3
  row = lambda i, j: (0, i)
  found = _call(
    functools.partial(_sums_body, rule, given.words[1]),
    given,
    over='words',
    products=1,
    rule=rule,
    out_specs=[pl.BlockSpec((1, given.tokens[0]), row)] * many,
    out_shape=[jax.ShapeDtypeStruct((1, given.shape[0]), jnp.float32)] * many,
  )
  found = [a[0, : len(x_ND)] for a in found]
  return _streamed.Sums(*found, *[None] * (4 - many))


def _sums_body(rule, size, x, unembed, rows, bias, *out):
  top, total, right = out[:3]

  @pl.when(pl.program_id(1) == 0)
  def _():
    top[...] = jnp.full_like(top, LEAST)
    for a in out[1:]:
      a[...] = jnp.zeros_like(a)

  z, _, hot, b = _logits(rule, x, unembed, rows, bias, pl.program_id(1) * size)
  higher = jnp.maximum(top[...], jnp.max(z, axis=0, keepdims=True))
  more = jnp.sum(jnp.exp(z - higher), axis=0, keepdims=True)
  total[...] = total[...] * jnp.exp(top[...] - higher) + more
  top[...] = higher
  right[...] += jnp.sum(jnp.where(hot, z, 0.0), axis=0, keepdims=True)
  if rule.label_smoothing:
    real = z if b is None else jnp.where(b > -1e29, z, 0.0)
    out[3][...] += jnp.sum(real, axis=0, keepdims=True)


def _grads(rule, x_ND, unembed_VD, bias_V, target_N, factors):
  given = _laid(x_ND, unembed_VD, bias_V, target_N, *factors)
  (n, width), words = x_ND.shape, len(unembed_VD)
  wide, held = given.shape[1], given.words[0]
  dx = _call(
    functools.partial(_dx_body, rule, given.words[1]),
    given,
    over='words',
    products=2,
    rule=rule,
    out_specs=pl.BlockSpec((given.tokens[0], wide), lambda i, j: (i, 0)),
    out_shape=jax.ShapeDtypeStruct((n, wide), x_ND.dtype),
    scratch_shapes=[pltpu.VMEM((given.tokens[0], wide), jnp.float32)],
  )
  specs = [pl.BlockSpec((held, wide), lambda j, i: (j, 0))]
  shapes = [jax.ShapeDtypeStruct((words, wide), jnp.float32)]
  if bias_V is not None:
    specs += [pl.BlockSpec((1, held), lambda j, i: (0, j))]
    shapes += [jax.ShapeDtypeStruct((1, given.shape[2]), jnp.float32)]
  dw, *db = _call(
    functools.partial(_dw_body, rule, held),
    given,
    over='tokens',
    products=2,
    rule=rule,
    out_specs=specs,
    out_shape=shapes,
  )
  return dx[:, :width], dw[:, :width], db[0][0, :words] if db else None


def _dx_body(rule, size, x, unembed, rows, bias, dx, sums):
  @pl.when(pl.program_id(1) == 0)
  def _():
    sums[...] = jnp.zeros_like(sums)

  _, dots = _change(rule, x, unembed, rows, bias, pl.program_id(1) * size)
  sums[...] += _dot(dots.astype(x.dtype), unembed[...], 0, 0)

  @pl.when(pl.program_id(1) == pl.num_programs(1) - 1)
  def _():
    dx[...] = sums[...].astype(dx.dtype)


def _dw_body(rule, size, x, unembed, rows, bias, dw, *db):
  @pl.when(pl.program_id(1) == 0)
  def _():
    for a in (dw, *db):
      a[...] = jnp.zeros_like(a)

  dz, dots = _change(rule, x, unembed, rows, bias, pl.program_id(0) * size)
  dw[...] += _dot(dots.astype(x.dtype), x[...], 1, 0)
  for a in db:
    a[...] += _turned(jnp.sum(dz, axis=1, keepdims=True), 1)


def _change(rule, x, unembed, rows, bias, first):
  z, bent, hot, b = _logits(rule, x, unembed, rows, bias, first)
  factors = _streamed.Factors(*(a[...] for a in rows[1:]))
  return _streamed.change(rule, z, bent, hot, b, factors)


def _logits(rule, x, unembed, rows, bias, first):
  """(z, its tanh, where words are targets, biases) of a tile (words, tokens)."""
  b = _turned(bias[0][...], 0) if bias else None
  z, bent = _streamed.logits(rule, _dot(unembed[...], x[...], 1, 1), b)
  hot = jax.lax.broadcasted_iota(jnp.int32, z.shape, 0) + first == rows[0][...]
  return z, bent, hot, b


def _dot(a, b, of_a, of_b):
  """Contracts an axis of each; float32."""
  axes = ((of_a,), (of_b,)), ((), ())
  return jax.lax.dot_general(a, b, axes, preferred_element_type=jnp.float32)


def _turned(a, axis: int):
  """A row (1, V) as a column, axis 0, or a column as a row, axis 1: the transpose of whole
  registers.
  """
  whole = jnp.broadcast_to(a, [mosaic.LANES if i == axis else n for i, n in enumerate(a.shape)])
  return jax.lax.slice_in_dim(whole.T, 0, 1, axis=1 - axis)


def _call(body, given: Laid, *, over, products, rule, out_shape, **how):
  """A kernel that passes `over` words or tokens, the others standing still."""
  n, width, words = given.shape
  passing = over == 'words'
  tokens, own = given.tokens[not passing], given.words[passing]
  token = (lambda i, j: i) if passing else (lambda j, i: i)
  word = (lambda i, j: j) if passing else (lambda j, i: j)
  of_rows = pl.BlockSpec((1, tokens), lambda *at: (0, token(*at)))
  of_bias = pl.BlockSpec((1, own), lambda *at: (0, word(*at)))
  grid = (n // tokens, words // own) if passing else (words // own, n // tokens)
  again = [grid[0], 1] if passing else [1, grid[0]]  # how often W and x are read
  item = given.x_ND.dtype.itemsize
  outs = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(out_shape))
  asked = precision.exact(given.x_ND.dtype)
  with jax.default_matmul_precision('highest' if asked else 'default'):
    return pl.pallas_call(
      body,
      grid=grid,
      in_specs=[
        pl.BlockSpec((tokens, width), lambda *at: (token(*at), 0)),
        pl.BlockSpec((own, width), lambda *at: (word(*at), 0)),
        (of_rows,) * len(given.rows),
        (of_bias,) * len(given.bias),
      ],
      out_shape=out_shape,
      compiler_params=pltpu.CompilerParams(
        dimension_semantics=('parallel', 'arbitrary'), vmem_limit_bytes=LIMIT
      ),
      cost_estimate=pl.CostEstimate(
        flops=2 * products * n * words * width,
        transcendentals=n * words * (1 if rule.cap is None else 2),
        bytes_accessed=item * width * (again[0] * words + again[1] * n) + outs,
      ),
      **how,
    )(given.x_ND, given.unembed_VD, given.rows, given.bias)


KERNELS = _streamed.Kernels(_sums, _grads)
