"""The forward kernel of `mosaic`, and what the gradient's share with it: how arrays are cut, and
what is made of one chunk. Arrays in a kernel have heads first: (heads, C, K), (heads, K, V).
"""

import functools
import math
from typing import NamedTuple

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from lmjax.kernels import precision
from lmjax.kernels.delta_rule import mosaic

LIMIT = 60 * 2**20  # bytes, of blocks and what the compiler adds; a v5p has 64 MiB


class Plan(NamedTuple):
  """How arrays are cut: tokens of a row, chunks of it, heads of a block, heads, (K, V); reverse:
  from the last chunk to the first.
  """

  steps: int
  many: int
  each: int
  heads: int
  sizes: tuple[int, int]
  reverse: bool = False

  def cut(self, x, sums: bool = False):
    """(B, T, H) as rows (B, N, H, 1, C), missing tokens 0; sums: up to a token, in its chunk."""
    x = jnp.pad(x, ((0, 0), (0, -self.steps % mosaic.CHUNK), (0, 0)))
    x = x.reshape(len(x), self.many, mosaic.CHUNK, -1)
    x = jnp.cumsum(x, axis=2, dtype=jnp.float32) if sums else x
    return x.swapaxes(2, 3)[..., None, :]

  def joined(self, x):
    x = x[..., 0, :].swapaxes(2, 3)
    return x.reshape(len(x), -1, x.shape[-1])[:, : self.steps]

  def _at(self, c):
    return self.many - 1 - c if self.reverse else c

  def tokens(self, x):
    return pl.BlockSpec(
      (1, mosaic.CHUNK, self.each, x.shape[3]), lambda b, h, c: (b, self._at(c), h, 0)
    )

  def rows(self, x):
    """Of numbers of a token, for each head or for all."""
    many = x.shape[2] > 1
    place = lambda b, h, c: (b, self._at(c), h if many else 0, 0, 0)
    return pl.BlockSpec((1, 1, self.each if many else 1, 1, mosaic.CHUNK), place)

  def memory(self, x):
    return pl.BlockSpec((1, self.each, *x.shape[2:]), lambda b, h, c: (b, h, 0, 0))

  def chunk(self, x):
    """Of memories (B, N, H, K, V)."""
    place = lambda b, h, c: (b, self._at(c), h, 0, 0)
    return pl.BlockSpec((1, 1, self.each, *x.shape[3:]), place)

  def flops(self, of_keys: int, of_values: int, memories: int) -> int:
    """Of a head's chunk: products of pairs with K and V, those by way of S, and the inverse."""
    n, (k, v) = mosaic.CHUNK, self.sizes
    pairs = of_keys * n * n * k + of_values * n * n * v
    return 2 * (pairs + memories * n * k * v) + 4 * (_levels() - 1) * n**3

  def call(self, body, name: str, given, out, products: tuple[int, int, int]):
    """given, out: (array or its shape and dtype, its blocks) of each; products: see `flops`."""
    arrays, places = zip(*given)
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x, _ in out]
    moved = sum(math.prod(x.shape) * x.dtype.itemsize for x in (*arrays, *shapes))
    rows, exact = len(arrays[0]), precision.exact(arrays[0].dtype)
    flops = rows * self.heads * self.many * self.flops(*products)
    with jax.default_matmul_precision('highest' if exact else 'default'):
      return pl.pallas_call(
        functools.partial(body, self.steps, self.many),
        out_shape=shapes,
        grid=(rows, self.heads // self.each, self.many),
        in_specs=list(places),
        out_specs=[place for _, place in out],
        compiler_params=pltpu.CompilerParams(
          dimension_semantics=('parallel', 'parallel', 'arbitrary'), vmem_limit_bytes=LIMIT
        ),
        cost_estimate=pl.CostEstimate(flops=flops, transcendentals=0, bytes_accessed=moved),
        name=name,
      )(*arrays)


def plan(q, v) -> Plan:
  rows, steps, heads, _ = q.shape
  each = mosaic.heads_of_a_block(heads)
  return Plan(steps, pl.cdiv(steps, mosaic.CHUNK), each, heads, (q.shape[3], v.shape[3]))


def delta_rule(q, k, v, beta, starts, state):
  """(o, the memory behind) of one device."""
  how = plan(q, v)
  b, runs = how.cut(beta), how.cut(starts[..., None], sums=True)
  given = [(x, how.tokens(x)) for x in (q, k, v)] + [(x, how.rows(x)) for x in (b, runs)]
  memory = state, how.memory(state)
  return how.call(_kernel, 'delta_rule', [*given, memory], [given[2], memory], (2, 2, 3))


class Chunk(NamedTuple):
  """Of a chunk, heads first. r = V - K S0; d = D and m, the inverse, in the dtype of the keys; kk =
  K K^T; masks: low, own: pairs of A and of P; first, last: tokens that read S0, that are written to
  S1; keep: whether S0 goes on.
  """

  b: jax.Array
  r: jax.Array
  d: jax.Array
  m: jax.Array
  kk: jax.Array
  low: jax.Array
  own: jax.Array
  first: jax.Array
  last: jax.Array
  keep: jax.Array


def begin(step, to, start):
  @pl.when(step == 0)
  def _():
    to[...] = start[...]


def here(steps: int, chunk, *refs):
  """Tokens of a chunk, (heads, C, K or V), 0 behind the last of a row, where anything may lie."""
  found = [jnp.swapaxes(x[0], 0, 1) for x in refs]
  if steps % mosaic.CHUNK == 0:
    return found
  real = jax.lax.broadcasted_iota(jnp.int32, (1, mosaic.CHUNK, 1), 1) < steps - chunk * mosaic.CHUNK
  return [jnp.where(real, x, 0) for x in found]


def chunk(k, v, beta, runs, s) -> Chunk:
  b, j, dtype = _column(beta[0, 0]), runs[0, 0], k.dtype
  i, end = _column(j), jnp.max(j, axis=2, keepdims=True)
  low, same = _tokens(2) < _tokens(1), i == j
  kk, first = dot(k, k, 2, 2), i == 0
  m = _inverse(jnp.where(same & low, b * kk, 0.0)).astype(dtype)
  r = v - jnp.where(first, dot(k, s.astype(dtype), 2, 1), 0.0)
  d = dot(m, (b * r).astype(dtype), 2, 1).astype(dtype)
  own = same & (_tokens(2) <= _tokens(1))
  return Chunk(b, r, d, m, kk, same & low, own, first, i == end, end == 0)


def after(c: Chunk, k, s):
  """S1."""
  return jnp.where(c.keep, s, 0.0) + dot(jnp.where(c.last, k, 0), c.d, 1, 1)


def _kernel(steps, many, q, k, v, beta, runs, before, o, state):
  del many
  at = pl.program_id(2)
  begin(at, state, before)
  s = state[0]
  q, k, v = here(steps, at, q, k, v)
  c = chunk(k, v, beta, runs, s)
  own = jnp.where(c.own, dot(q, k, 2, 2), 0.0).astype(k.dtype)
  found = jnp.where(c.first, dot(q, s.astype(k.dtype), 2, 1), 0.0) + dot(own, c.d, 2, 1)
  o[0] = jnp.swapaxes(found.astype(o.dtype), 0, 1)
  state[0] = after(c, k, s)


def _inverse(a):
  """(I + a)^-1 of strictly lower triangles (heads, C, C)."""
  i, j = _tokens(1), _tokens(2)
  m = jnp.where(i == j, 1.0, 0.0)
  for level in range(_levels()):
    joins = ((i >> level) ^ 1) == (j >> level)
    part = jnp.where(joins, a, 0.0)
    m = m - (dot(dot(m, part, 2, 1, 'highest'), m, 2, 1, 'highest') if level else part)
  return m


def dot(a, b, of_a: int, of_b: int, precision=None):
  """Contracts an axis of each, head by head; float32."""
  axes = ((of_a,), (of_b,)), ((0,), (0,))
  return jax.lax.dot_general(a, b, axes, precision, preferred_element_type=jnp.float32)


def _tokens(axis: int):
  """(1, C, C): where a token of the chunk is, along an axis."""
  return jax.lax.broadcasted_iota(jnp.int32, (1, mosaic.CHUNK, mosaic.CHUNK), axis)


def _column(row):
  """(..., 1, C) as (..., C, 1), by a mask: sums, not a transpose of something so thin."""
  return jnp.sum(jnp.where(_tokens(1) == _tokens(2), row, 0.0), axis=2, keepdims=True)


def row(column):
  """(..., C, 1) as (..., 1, C)."""
  return jnp.sum(jnp.where(_tokens(1) == _tokens(2), column, 0.0), axis=1, keepdims=True)


def _levels() -> int:
  return int(math.log2(mosaic.CHUNK))
