"""One pass over the codes: a block comes to the TPU's own memory, W^ is made there, block by block
of inputs and outputs, and multiplied in the dtype of x with sums in float32.

n codes share a byte along the last input axis or the last output axis, the first code lowest. They
are not put in line, which TPUs are slow at; the other operand is taken apart instead:

  inputs   y = sum_p x[:, p::n] W^_p     W^_p: the p-th code of every byte
  outputs  y[:, p::n] = x W^_p

Axes: N rows, I inputs, O outputs, G groups; R, C: rows and columns of bytes; P: of a byte's codes.
"""

import functools
import math
from typing import NamedTuple

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from lmjax.kernels import precision as precision_lib
from lmjax.parallel import shard

ROWS = 512  # more are no decoding: W^ would be made again for each block of them
DEEP = (512, 256, 128)  # bytes of a block along inputs
WIDE = (1024, 512, 256, 128)  # and along outputs
LANES, SUBLANES, PAIRS = 128, 8, 16
ROOM = 2**22  # bytes of a block of rows, coming and in use, or of sums, in use and leaving


class How(NamedTuple):
  """The static arguments. inputs: whether codes of a byte are of different inputs. each: rows of
  bytes of one group. deep, wide: bytes of a block. middle: z where there is no variable for it.
  """

  inputs: bool
  per_byte: int
  each: int
  deep: int
  wide: int
  middle: float | None

  @property
  def runs(self) -> tuple[int, int]:
    """Groups of a block, and rows of bytes that each has of it."""
    return max(1, self.deep // self.each), min(self.deep, self.each)

  def taken(self, byte, p: int):
    """The p-th codes of bytes, int32."""
    bits = 8 // self.per_byte
    return byte.astype(jnp.int32) >> (bits * p) & (2**bits - 1)


def refuses(*, platform, rows, dtype, variables, layout) -> str:
  n, groups = layout.per_byte, variables['scale'].shape[0]
  r, c = _bytes(variables['codes'].shape, layout)
  sizes = layout.ins + layout.outs
  if platform != 'tpu':
    return f'mosaic runs on TPUs, this is for a {platform}'
  if not shard.mesh().empty:
    return 'mosaic takes a matrix that lies on one device, without a mesh'
  if dtype not in (jnp.bfloat16, jnp.float32):
    return f'mosaic takes bfloat16 or float32, not {dtype}'
  if rows > ROWS:
    return f'mosaic takes at most {ROWS} rows, these are {rows}'
  if n == groups == 1:
    return 'mosaic is for codes that share bytes or scales; xla reads others once as well'
  if layout.axis not in (len(layout.ins) - 1, len(sizes) - 1):
    return 'mosaic takes codes that are packed along the last input or the last output axis'
  if sizes[layout.axis] % n or layout.outs[-1] % n:
    return f'mosaic takes whole bytes of {n} codes'
  if r % LANES or c % LANES:
    return f'mosaic takes multiples of {LANES} bytes of codes each way, these are {r} x {c}'
  if r % groups or r // groups % SUBLANES or not _deep(r, r // groups):
    return f'mosaic takes groups of a multiple of {SUBLANES} rows of bytes that fits into blocks'
  return ''


def _bytes(shape, layout) -> tuple[int, int]:
  n = len(layout.ins)
  return math.prod(shape[:n]), math.prod(shape[n:])


def _deep(rows: int, each: int, room: int = DEEP[0]) -> int | None:
  fits = lambda n: n <= room and rows % n == 0 and (n % each == 0 or each % n == 0)
  return next(filter(fits, DEEP), None)


def product(x, variables, layout, whole):
  """See the package."""

  @jax.custom_vjp
  def run(x, variables):
    return _product(x, variables, layout)

  def backward(kept, dy):
    return jax.vjp(whole, *kept)[1](dy)

  run.defvjp(lambda *given: (run(*given), given), backward)
  return run(x, variables)


def _product(x, variables, layout):
  r, c = _bytes(variables['codes'].shape, layout)
  groups, n = variables['scale'].shape[0], layout.per_byte
  zero = variables.get('zero')
  inputs, size = layout.axis < len(layout.ins), x.dtype.itemsize
  flat = x.reshape(-1, math.prod(layout.ins))
  rows = len(flat)
  flat = jnp.pad(flat, ((0, -rows % PAIRS), (0, 0)))
  coming, leaving = (n, 1) if inputs else (1, n)
  room = ROOM // (leaving * len(flat) * (4 + 2 * size))
  how = How(
    inputs=inputs,
    per_byte=n,
    each=r // groups,
    deep=_deep(r, r // groups, ROOM // (coming * len(flat) * 2 * size)),
    wide=next(w for w in WIDE if c % w == 0 and w <= room),
    middle=layout.middle if zero is None else None,
  )
  apart = lambda x: jnp.stack([x[:, p::n] for p in range(n)])
  scale = jnp.broadcast_to(
    variables['scale'].reshape(groups, -1), (groups, math.prod(layout.outs))
  ).astype(jnp.float32)
  given = [apart(flat) if how.inputs else flat[None], variables['codes'].reshape(r, c)]
  given.append((scale[None] if how.inputs else apart(scale))[:, :, None])
  if zero is not None:
    parts = jnp.stack([how.taken(zero.reshape(groups, -1), p) for p in range(n)])
    if how.inputs:
      parts = parts.transpose(1, 2, 0).reshape(1, groups, c)
    given.append(parts.astype(jnp.float32)[:, :, None])
  y = _call(how, *given)[:, :rows]
  y = y[0] if how.inputs else y.transpose(1, 2, 0)
  return y.reshape(*x.shape[: x.ndim - len(layout.ins)], *layout.outs)


def _call(how: How, x_PNR, codes_RC, *of_groups_PGC):
  """(P or 1, N, C)."""
  rows, (r, c), parts = x_PNR.shape[1], codes_RC.shape, of_groups_PGC[0].shape[0]
  groups, _ = how.runs
  blocks = max(1, how.each // how.deep)  # of one group
  group = lambda k: jax.lax.div(k, jnp.int32(blocks))
  block = pl.BlockSpec((parts, groups, 1, how.wide), lambda o, k: (0, group(k), 0, o))
  out = jax.ShapeDtypeStruct((parts, rows, c), x_PNR.dtype)
  given = x_PNR, codes_RC, *of_groups_PGC
  moved = sum(a.size * a.dtype.itemsize for a in (*given, out))
  again = (c // how.wide - 1) * x_PNR.size * x_PNR.dtype.itemsize
  return pl.pallas_call(
    functools.partial(_kernel, how),
    out_shape=out,
    grid=(c // how.wide, r // how.deep),
    in_specs=[
      pl.BlockSpec((len(x_PNR), rows, how.deep), lambda o, k: (0, 0, k)),
      pl.BlockSpec((how.deep, how.wide), lambda o, k: (k, o)),
      *[block] * len(of_groups_PGC),
    ],
    out_specs=pl.BlockSpec((parts, rows, how.wide), lambda o, k: (0, 0, o)),
    scratch_shapes=[pltpu.VMEM((parts, rows, how.wide), jnp.float32)],
    compiler_params=pltpu.CompilerParams(dimension_semantics=('parallel', 'arbitrary')),
    cost_estimate=pl.CostEstimate(2 * rows * r * c * how.per_byte, 0, moved + again),
    name='quant_matmul',
  )(*given)


def _kernel(how: How, x, codes, scale, *rest):
  *zero, y, total = rest

  @pl.when(pl.program_id(1) == 0)
  def _():
    total[...] = jnp.zeros_like(total)

  byte, runs = codes[...], (*how.runs, how.wide)
  precision = 'highest' if precision_lib.exact(x.dtype) else 'default'
  for p in range(how.per_byte):
    i, o = (p, 0) if how.inputs else (0, p)
    code = how.taken(byte, p).astype(jnp.float32).reshape(runs)
    w = scale[o] * (code - (zero[0][o] if zero else how.middle))
    w = w.reshape(how.deep, how.wide).astype(x.dtype)
    total[o] += jnp.dot(x[i], w, precision=precision, preferred_element_type=jnp.float32)

  @pl.when(pl.program_id(1) == pl.num_programs(1) - 1)
  def _():
    y[...] = total[...].astype(y.dtype)
