"""One pass over gradient and codes: a tile comes to the TPU's own memory, its states are decoded
there, the step is made, the new states are coded again, and update, codes and scales leave.

A parameter is a matrix of its last axis F by all others R; a tile is 32 rows of some blocks. Scales
(R, F / block) of a tile's rows stay while its blocks are gone through; a block's scales are one
column of them, picked and put by a mask, since TPUs do not slice lanes by a number that they learn.
"""

import functools
import math

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from lmjax.kernels.blockwise_update import elementwise
from lmjax.parallel import shard

ROWS = 32  # of bytes that lie together
WIDE, WIDEST = 2048, 4096  # elements of a row in a tile; of a block at most
LANES = 128


def refuses(*, platform, plans) -> str:
  if platform != 'tpu':
    return f'mosaic runs on TPUs, this is for a {platform}'
  if not shard.mesh().empty:
    return 'mosaic takes parameters that lie on one device, without a mesh'
  if not any(map(_fits, plans())):
    return (
      'mosaic takes steps on single elements of parameters in float32, in blocks of a multiple of '
      f'{LANES} up to {WIDEST} that divide the last axis, and {ROWS} rows or a multiple; none is so'
    )
  return ''


def _fits(plan) -> bool:
  b = plan.blocks
  rows, last = math.prod(b.shape[:-1]), b.shape[-1]
  return (
    b.plain
    and b.block % LANES == 0
    and b.block <= WIDEST
    and last % b.block == 0
    and rows % ROWS == 0
    and b.shape[-2] % ROWS == 0
  )


def update(whole, plans, code):
  """See the package."""
  updates, (codes, scales) = whole()  # the compiler drops what is replaced
  flat, tree = jax.tree.flatten(updates)
  kept, state = jax.tree.flatten(codes)
  of_kept = state.flatten_up_to(scales)
  for plan in filter(_fits, plans()):
    flat[plan.gradient], new, sizes = _leaf(plan, code)
    for j, c, s in zip(plan.states, new, sizes):
      kept[j], of_kept[j] = c, s
  together = jax.tree.unflatten(state, kept), jax.tree.unflatten(state, of_kept)
  return jax.tree.unflatten(tree, flat), together


def _leaf(plan, code):
  """(update, new codes, new scales)."""
  b, n = plan.blocks, len(plan.codes)
  rows, last = math.prod(b.shape[:-1]), b.shape[-1]
  count = last // b.block
  each = next(m for m in range(max(1, WIDE // b.block), 0, -1) if count % m == 0)
  flat = lambda x: x.reshape(rows, last)
  tile = pl.BlockSpec((ROWS, each * b.block), lambda i, j: (i, j))
  sizes = pl.BlockSpec((ROWS, count), lambda i, j: (i, 0))
  like = lambda dtype, width=last: jax.ShapeDtypeStruct((rows, width), dtype)
  numbers = [jnp.asarray(x).reshape(1, 1) for x in plan.scalars]
  given = [*map(flat, plan.codes), *(s.reshape(rows, count) for s in plan.scales)]
  given += map(flat, plan.arrays)
  results = [like(jnp.float32), *[like(jnp.uint8)] * n, *[like(jnp.float32, count)] * n]
  moved = sum(math.prod(a.shape) * a.dtype.itemsize for a in (*given, *results))
  out = pl.pallas_call(
    functools.partial(_kernel, plan, code, each),
    out_shape=results,
    grid=(rows // ROWS, count // each),
    in_specs=[
      *[tile] * n,
      *[sizes] * n,
      *[tile] * len(plan.arrays),
      *[pl.BlockSpec(memory_space=pltpu.SMEM)] * len(numbers),
    ],
    out_specs=[tile, *[tile] * n, *[sizes] * n],
    input_output_aliases={i: 1 + i for i in range(n)},
    compiler_params=pltpu.CompilerParams(dimension_semantics=('parallel', 'arbitrary')),
    cost_estimate=pl.CostEstimate(0, 0, moved),
    name='blockwise_update',
  )(*given, *numbers)
  back = lambda x: x.reshape(b.shape)
  scales = (x.reshape(b.scales_shape) for x in out[1 + n :])
  return back(out[0]), list(map(back, out[1 : 1 + n])), list(scales)


def _kernel(plan, code, each, *refs):
  n, block = len(plan.codes), plan.blocks.block
  cuts = [n, 2 * n, 2 * n + len(plan.arrays)]
  cuts += [cuts[-1] + len(plan.scalars), cuts[-1] + len(plan.scalars) + 1]
  cuts += [cuts[-1] + n]
  begin = [0, *cuts]
  codes, sizes, arrays, numbers, (y,), new, news = (
    refs[a:b] for a, b in zip(begin, [*cuts, len(refs)])
  )
  numbers = [x[0, 0] for x in numbers]
  lanes = jax.lax.broadcasted_iota(jnp.int32, sizes[0].shape, 1)
  for t in range(each):
    at, mine = pl.ds(t * block, block), lanes == pl.program_id(1) * each + t
    spread = lambda column: jnp.broadcast_to(column, (ROWS, block))
    own = [jnp.sum(jnp.where(mine, s[...], 0.0), axis=1, keepdims=True) for s in sizes]
    decoded = [code.decode(c[:, at], spread(s), elementwise.sign) for c, s in zip(codes, own)]
    found = plan.run(decoded, [a[:, at] for a in arrays], numbers)
    y[:, at] = found[0]
    for x, c, s in zip(found[1:], new, news):
      high, low = (jnp.max(v, axis=1, keepdims=True) for v in (x, -x))
      high, low = jnp.maximum(high, 0.0), jnp.maximum(low, 0.0)
      scale = jnp.where(low > 0, -jnp.maximum(high, low), high)
      c[:, at] = code.encode(x, spread(scale))
      s[...] = jnp.where(mine, scale, s[...])
