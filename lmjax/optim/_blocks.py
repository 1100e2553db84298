"""Block-wise dynamic quantization to 8 bits.

Dynamic (tree) numbers in [0, 1]: 7 decades i = 0 ... 6; decade i spans 10^(i-6) [0.1, 1] and has
n_i equal cells, a code standing for the middle of its cell; besides there are 0 and 1.
  signed:   n_i = 2^i, each code also negative but 1 itself: 127 + 1 + 128 codes, 127 is zero
  unsigned: n_i = 2^(i+1), no negative ones: 1 + 255 codes, 0 is zero
So the relative error is about 1 % near 1 and 45 % near 1e-7, the smallest number.

Blocks: a tensor of one layer, flattened in the order of its axes, in runs of `block` elements; the
last may be shorter. A block is divided by its largest size. Stacked layers are tensors each.
"""

import math

import jax.numpy as jnp
import numpy as np

DECADES = 7
CHUNK = 128  # at most: the sharded axes of large models still divide by it


def dynamic_map(signed: bool) -> np.ndarray:
  """The 256 numbers in ascending order, float64; the index is the code."""
  out = [0.0, 1.0]
  for i in range(DECADES):
    n = _cells(i, signed)
    middles = 10.0 ** (i + 1 - DECADES) * (0.1 + 0.9 * (np.arange(n) + 0.5) / n)
    out += [*middles, *(-middles if signed else ())]
  return np.sort(out)


def _cells(i: int, signed: bool) -> int:
  return 2**i if signed else 2 ** (i + 1)


def _rank(a, signed: bool):
  """The place of the number nearest to a, of those that are not negative: 0 is 0, the last 1.

  By arithmetic and not by search: tables are slow to look up on accelerators.
  """
  magnitudes = dynamic_map(signed)[127 if signed else 0 :]
  halfway = (magnitudes[1:] + magnitudes[:-1]) / 2
  out, first = jnp.zeros(a.shape, jnp.int32), 1
  for i in range(DECADES):
    n = _cells(i, signed)
    cell = jnp.floor((a * 10.0 ** (DECADES - 1 - i) - 0.1) * (n / 0.9))
    inside = first + jnp.clip(cell, 0, n - 1).astype(jnp.int32)
    out = jnp.where(a > halfway[first - 1], inside, out)
    first += n
  return jnp.where(a > halfway[-1], first, out)


def _magnitude(rank, signed: bool):
  """The number at a place; the inverse of `_rank`."""
  out, first = jnp.zeros(rank.shape, jnp.float32), 1
  for i in range(DECADES):
    n = _cells(i, signed)
    middle = 10.0 ** (i + 1 - DECADES) * (0.1 + 0.9 * (rank - first + 0.5) / n)
    out = jnp.where(rank >= first, middle, out)
    first += n
  return jnp.where(rank >= first, 1.0, out)


def encode(x, scale):
  """uint8 codes of x; |scale| is the size of x's block, and a negative scale means the signed map.

  With the unsigned map what is above 0 does not become 0.
  """
  signed, size = scale < 0, jnp.abs(scale)
  a = jnp.abs(x) / jnp.where(size > 0, size, 1.0)
  rank = jnp.minimum(_rank(a, True), jnp.where(x < 0, 127, 128))
  unsigned = jnp.maximum(_rank(a, False), (x > 0).astype(jnp.int32))
  return jnp.where(signed, 127 + jnp.where(x < 0, -rank, rank), unsigned).astype(jnp.uint8)


def decode(codes, scale, sign=jnp.sign):
  """float32 from codes."""
  codes = codes.astype(jnp.int32)
  off = codes - 127
  signed = sign(off) * _magnitude(jnp.abs(off), True)
  return jnp.abs(scale) * jnp.where(scale < 0, signed, _magnitude(codes, False))


class Blocks:
  """How a tensor of this shape and fact falls into blocks.

  `scales` has the shape (stacked axes..., blocks): the largest size in the block, negative where
  the block holds negative numbers. Only maxima of chunks, runs along the last axis, are ever
  flattened, so that a sharded tensor stays where it is.
  """

  def __init__(self, fact, shape, block: int):
    self.stack, ins, outs = fact.axes()
    self.rest = sorted(ins + outs)
    self.block, self.shape = block, shape
    self.last = shape[self.rest[-1]] if self.rest else 1
    self.chunk = math.gcd(self.last, block, CHUNK)
    self.size = math.prod(shape[i] for i in self.rest)

  @property
  def plain(self) -> bool:
    """Whether blocks follow the order of the tensor's axes."""
    order = [*self.stack, *self.rest]
    return len(order) > 1 and order == sorted(order)

  @property
  def count(self) -> int:
    return -(-self.size // self.block)

  @property
  def scales_shape(self) -> tuple[int, ...]:
    return tuple(self.shape[i] for i in self.stack) + (self.count,)

  def scales(self, x):
    x = x.transpose(self.stack + self.rest)
    chunks = x.reshape(*x.shape[:-1], self.last // self.chunk, self.chunk)
    high, low = self._most(chunks), self._most(-chunks)
    return jnp.where(low > 0, -jnp.maximum(high, low), high)

  def _most(self, chunks):
    """The largest of each block, at least 0."""
    flat = jnp.max(chunks, axis=-1).reshape(*self.scales_shape[:-1], -1)
    missing = self.count * self.block // self.chunk - flat.shape[-1]
    flat = jnp.pad(flat, [(0, 0)] * (flat.ndim - 1) + [(0, missing)])
    return jnp.maximum(jnp.max(flat.reshape(*self.scales_shape, -1), axis=-1), 0.0)

  def spread(self, scales):
    """The scale of every element, in the tensor's shape."""
    order = self.stack + self.rest
    shape = [self.shape[i] for i in order]
    chunks = jnp.repeat(scales, self.block // self.chunk, axis=-1)
    chunks = chunks[..., : self.size // self.chunk].reshape(*shape[:-1], -1, 1)
    whole = jnp.broadcast_to(chunks, (*chunks.shape[:-1], self.chunk)).reshape(shape)
    return whole.transpose([order.index(i) for i in range(len(order))])
