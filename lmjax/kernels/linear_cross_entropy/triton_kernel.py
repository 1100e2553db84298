"""The kernels of `triton`. Tiles of logits are (tokens, words), their products go over the width in
pieces.

Axes: N tokens, V words, D width, all of whole tiles; C tokens of a chunk, S spans of words.
"""

import functools
from typing import NamedTuple

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt
import jax.numpy as jnp

from lmjax.kernels.linear_cross_entropy import _streamed

CALL = pl.pallas_call
TOKENS = WORDS = 128  # of a tile
WIDTH = 128  # bytes of a piece of the width
SPAN = 4096  # words of a program, forward
CHUNK = 2**26  # bytes of the gradients of logits at once, backward
LEAST = -3e38  # below every logit
WARPS, STAGES = 8, 3


class Laid(NamedTuple):
  """Operands in whole tiles; rows: (N,) of each token; bias: () or the (V,) one."""

  x_ND: jax.Array
  unembed_VD: jax.Array
  rows: tuple
  bias: tuple

  @property
  def shape(self) -> tuple[int, int, int]:
    return *self.x_ND.shape, len(self.unembed_VD)

  @property
  def piece(self) -> int:
    return WIDTH // self.x_ND.dtype.itemsize


def _laid(by: int, x_ND, unembed_VD, bias_V, target_N, *rows) -> Laid:
  """by: what the number of tokens is a multiple of."""
  (n, width), words = x_ND.shape, len(unembed_VD)
  longer, most = _streamed.upwards(n, by), _streamed.upwards(words, WORDS)
  wide = _streamed.upwards(width, WIDTH // x_ND.dtype.itemsize)
  bias = _streamed.biases(bias_V, words, most)
  return Laid(
    _streamed.padded(x_ND, longer, wide),
    _streamed.padded(unembed_VD, most, wide),
    (
      _streamed.padded(target_N, longer, value=-1),
      *(_streamed.padded(a, longer) for a in rows),
    ),
    () if bias is None else (bias,),
  )


def _sums(rule, x_ND, unembed_VD, bias_V, target_N):
  given = _laid(TOKENS, x_ND, unembed_VD, bias_V, target_N)
  n, _, words = given.shape
  spans, many = pl.cdiv(words, SPAN), 4 if rule.label_smoothing else 3
  top, *rest = _call(
    functools.partial(_sums_body, rule),
    given,
    rule,
    grid=(n // TOKENS, spans),
    out_specs=[pl.BlockSpec((None, TOKENS), lambda i, s: (s, i))] * many,
    out_shape=[jax.ShapeDtypeStruct((spans, n), jnp.float32)] * many,
  )
  highest = jnp.max(top, axis=0)
  rest[0] = rest[0] * jnp.exp(top - highest)
  found = [a[: len(x_ND)] for a in (highest, *(jnp.sum(a, axis=0) for a in rest))]
  return _streamed.Sums(*found, *[None] * (4 - many))


def _sums_body(rule, x, unembed, rows, bias, *out):
  first = pl.program_id(1) * SPAN
  zeros = jnp.zeros(TOKENS, jnp.float32)

  def one(j, so_far):
    z, _, hot, b = _logits(rule, x, unembed, rows, bias, first + j * WORDS)
    top, total, right, *mean = so_far
    higher = jnp.maximum(top, jnp.max(z, axis=1))
    total = total * jnp.exp(top - higher) + jnp.sum(jnp.exp(z - higher[:, None]), axis=1)
    right = right + jnp.sum(jnp.where(hot, z, 0.0), axis=1)
    if mean:
      real = z if b is None else jnp.where(b > -1e29, z, 0.0)
      mean = [mean[0] + jnp.sum(real, axis=1)]
    return higher, total, right, *mean

  many = jnp.minimum(SPAN, unembed.shape[0] - first) // WORDS
  begun = jnp.full(TOKENS, LEAST, jnp.float32), *[zeros] * (len(out) - 1)
  for a, found in zip(out, jax.lax.fori_loop(0, many, one, begun)):
    a[...] = found


def _grads(rule, x_ND, unembed_VD, bias_V, target_N, factors):
  (n, width), words = x_ND.shape, len(unembed_VD)
  size = chunk(n, words, x_ND.dtype.itemsize)
  given = _laid(size, x_ND, unembed_VD, bias_V, target_N, *factors)
  cut = jax.tree.map(lambda a: a.reshape(-1, size, *a.shape[1:]), (given.x_ND, given.rows))
  dot = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)

  def one(made, of_chunk):
    x_CD, rows = of_chunk
    dots_CV, *db = _dots(rule, given._replace(x_ND=x_CD, rows=rows), bias_V is not None)
    more = dot(dots_CV.T[:words], x_CD), *(jnp.sum(a, axis=0) for a in db)
    dx_CD = dot(dots_CV, given.unembed_VD).astype(x_CD.dtype)
    return jax.tree.map(jnp.add, made, more), dx_CD

  made = jnp.zeros((words, given.shape[1])), *[jnp.zeros(given.shape[2])] * (bias_V is not None)
  (dw, *db), dx = jax.lax.scan(one, made, cut)
  dx = dx.reshape(-1, given.shape[1])[:n, :width]
  return dx, dw[:, :width], db[0][:words] if db else None


def chunk(tokens: int, words: int, item: int) -> int:
  """Tokens of a chunk: a power of two, or all; whole tiles."""
  most = max(TOKENS, pl.next_power_of_2(CHUNK // (words * item) // 2 + 1))
  return min(most, _streamed.upwards(tokens, TOKENS))


def _dots(rule, given: Laid, biased: bool):
  """The gradient of x . W, and its sums over tiles of tokens before cap and scale."""
  n, _, words = given.shape
  specs = [pl.BlockSpec((TOKENS, WORDS), lambda i, j: (i, j))]
  shapes = [jax.ShapeDtypeStruct((n, words), given.x_ND.dtype)]
  if biased:
    specs += [pl.BlockSpec((None, WORDS), lambda i, j: (i, j))]
    shapes += [jax.ShapeDtypeStruct((n // TOKENS, words), jnp.float32)]
  return _call(
    functools.partial(_dots_body, rule),
    given,
    rule,
    grid=(n // TOKENS, words // WORDS),
    out_specs=specs,
    out_shape=shapes,
  )


def _dots_body(rule, x, unembed, rows, bias, out, *db):
  z, bent, hot, b = _logits(rule, x, unembed, rows, bias, pl.program_id(1) * WORDS)
  factors = _streamed.Factors(*(a[...][:, None] for a in rows[1:]))
  dz, dots = _streamed.change(rule, z, bent, hot, b, factors)
  out[...] = dots.astype(out.dtype)
  for a in db:
    a[...] = jnp.sum(dz, axis=0)


def _logits(rule, x, unembed, rows, bias, first):
  """(z, its tanh, where words are targets, biases) of a tile (tokens, words)."""
  words = pl.ds(first, WORDS)
  size = WIDTH // x.dtype.itemsize

  def piece(d, dots):
    part = pl.ds(d * size, size)
    return dots + plt.dot(x[:, part], unembed[words, part], trans_b=True)

  dots = jnp.zeros((TOKENS, WORDS), jnp.float32)
  dots = jax.lax.fori_loop(0, x.shape[1] // size, piece, dots)
  b = bias[0][words][None] if bias else None
  z, bent = _streamed.logits(rule, dots, b)
  hot = jax.lax.broadcasted_iota(jnp.int32, z.shape, 1) + first == rows[0][...][:, None]
  return z, bent, hot, b


def _call(body, given: Laid, rule, *, out_shape, **how):
  """A kernel of tiles of tokens; all words are in reach."""
  n, width, words = given.shape
  tokens = lambda *shape: pl.BlockSpec((TOKENS, *shape), lambda i, _: (i, *[0] * len(shape)))
  whole = lambda *shape: pl.BlockSpec(shape, lambda *_: (0,) * len(shape))
  outs = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(out_shape))
  return CALL(
    body,
    in_specs=[
      tokens(width),
      whole(words, width),
      (tokens(),) * len(given.rows),
      (whole(words),) * len(given.bias),
    ],
    out_shape=out_shape,
    compiler_params=plt.CompilerParams(num_warps=WARPS, num_stages=STAGES),
    cost_estimate=pl.CostEstimate(
      flops=2 * n * words * width,
      transcendentals=n * words * (1 if rule.cap is None else 2),
      bytes_accessed=given.x_ND.dtype.itemsize * width * (words + n) + outs,
    ),
    **how,
  )(given.x_ND, given.unembed_VD, given.rows, given.bias)


KERNELS = _streamed.Kernels(_sums, _grads)
