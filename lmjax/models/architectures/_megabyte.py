"""What `megabyte` is made of: moving rows, local attention that reaches into the patch before, and
the state of a text that is written byte by byte.

Axes: B rows, T bytes, K patches of P bytes, W the bytes behind one patch vector (P and what
convolutions reach back), R states of the patch before.
"""

import dataclasses
import functools
from typing import Any

from flax import struct
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from lmjax.nn import embedding
from lmjax.nn import params
from lmjax.nn import short_conv
from lmjax.nn import stack
from lmjax.nn.dropout import dropout
from lmjax.parallel import shard
from lmjax.parallel.facts import Fact
from lmjax.registry import Part


def reshape(x, shape, *names):
  """x in another shape, whose axes bear these names."""
  if not shard.is_explicit():
    return x.reshape(shape)
  return jax.lax.reshape(x, shape, out_sharding=shard.spec(names))


def rows_to_patches(x, patches: int):
  """(B K, ...) -> (B, K, ...)."""
  shape = (x.shape[0] // patches, patches, *x.shape[1:])
  if not shard.is_explicit():
    return x.reshape(shape)
  batch, *rest = jax.typeof(x).sharding.spec
  return jax.lax.reshape(x, shape, out_sharding=PartitionSpec(batch, None, *rest))


def patches_to_rows(x):
  """(B, K, ...) -> (B K, ...)."""
  shape = (x.shape[0] * x.shape[1], *x.shape[2:])
  if not shard.is_explicit():
    return x.reshape(shape)
  batch, _, *rest = jax.typeof(x).sharding.spec
  return jax.lax.reshape(x, shape, out_sharding=PartitionSpec(batch, *rest))


def per_row(flags_B, x):
  """(B,) beside an array (B, ...)."""
  return flags_B.reshape(*flags_B.shape, *(1,) * (x.ndim - 1))


def turned(x, by_B):
  """Each row moved to the left in time by its own number of places below T, in a circle.

  Shifts by powers of two, so that nothing is gathered or scattered; nothing at all where no row
  moves.
  """

  def turn(x, by_B):
    for bit in range((x.shape[1] - 1).bit_length()):
      taken_B = (by_B >> bit) & 1 > 0
      x = jnp.where(per_row(taken_B, x), jnp.roll(x, -(1 << bit), axis=1), x)
    return x

  return jax.lax.cond(jnp.any(by_B > 0), turn, lambda x, _: x, x, by_B)


def widened(x, before: int, behind: int):
  """x with places of zeros in time."""
  return jnp.pad(x, [(0, 0), (before, behind), *[(0, 0)] * (x.ndim - 2)])


class Patches(nn.Module):
  """Bytes to patch vectors: embedded, placed, convolved, concatenated, moved on by one patch."""

  model: Any
  rows: int
  patch: int
  taps: tuple

  @nn.compact
  def __call__(self, tokens_BT, ctx, last: bool = False):
    """(B, K, width): vector k holds the bytes (k - 1) P + 1 ... k P, a learned vector in place of
    bytes before the row and of other documents. `last`: only the vector that ends with the row.
    """
    m, p = self.model, self.patch
    ctx, size = ctx.replace(scheme=m.scheme), m.width // p
    table = embedding.table(self, 'table', self.rows, size, 'embed', m.scheme)
    x = m.position(name='position')(embedding.look_up(table, tokens_BT, m.dtype), ctx)
    if m.embed_norm is not None:
      x = m.embed_norm(name='embed_norm')(x, ctx)
    x = dropout(self, x, m.dropout, ctx)
    segments_BT = jnp.ones_like(tokens_BT) if ctx.segments_BT is None else ctx.segments_BT
    for i, taps in enumerate(self.taps):
      before = shard.shard(jnp.zeros((len(x), taps - 1, size), x.dtype), 'batch', None, 'width')
      conv = short_conv.ShortConv(taps, ('width',), name=f'conv_{i}')
      x = x + nn.gelu(conv(x, widened(segments_BT, taps - 1, 0), ctx, before))
    x, segments_BT = (
      a[:, -p:] if last else widened(a, p - 1, 0)[:, : a.shape[1]] for a in (x, segments_BT)
    )
    lead = (len(x), x.shape[1] // p)
    own_BKP = reshape(segments_BT, (*lead, p), 'batch', None, None)
    own_BKP = own_BKP == own_BKP[..., -1:]
    fact = Fact(('position', 'embed'), ('position',), 'position')
    pad_PD = shard.gather(params.param(self, 'pad', (p, size), fact, m.scheme), fact.names)
    x = reshape(x, (*lead, p, size), 'batch', None, None, 'width')
    x = jnp.where(own_BKP[..., None], x, pad_PD.astype(x.dtype))
    return reshape(x, (*lead, p * size), 'batch', None, 'width')


class Slices(nn.Module):
  """What the global model says to each byte of a patch: its slice, brought to the local width."""

  model: Any
  patch: int

  @nn.compact
  def __call__(self, x_BKD, ctx):
    """(B, K, P, local width)."""
    batch, patches, width = x_BKD.shape
    shape = (batch, patches, self.patch, width // self.patch)
    x = reshape(x_BKD, shape, 'batch', None, None, 'width')
    ctx = ctx.replace(scheme=self.model.scheme)
    # Both sides are widths; one mesh axis cannot shard two axes of a matrix.
    x = params.dense(ctx, 'down', dict(embed=shape[-1]), dict(width=self.model.width))(x)
    return x * self.model.width**-0.5


class Stack(nn.Module):
  """Layers and a norm: the global model, or the local one, of whose errors `key` is the cause."""

  model: Any
  key: str = ''

  @nn.compact
  def __call__(self, x_BTD, ctx, cache=None, beside: 'Beside | None' = None):
    m = self.model if beside is None else beside.applied(self.model)
    ctx = ctx.replace(scheme=m.scheme)
    try:
      x, cache, aux = stack.run(m, x_BTD, ctx, cache)
    except ValueError as e:
      if not self.key or str(e).startswith('config.'):
        raise
      raise type(e)(f'config.model.architecture: {self.key}: {e}') from None
    if m.final_norm is not None:
      x = m.final_norm(name='final_norm')(x, ctx)
    return x, cache, aux


# ---- local attention over the border of a patch


@dataclasses.dataclass(frozen=True)
class Beside:
  """Stands for a cache where all patches are computed at once, rows being (B K): `append` gives
  each patch the last `reach` keys and values of the one before.
  """

  patches: int
  reach: int

  def append(self, *new):
    def joined(x):
      x = rows_to_patches(x, self.patches)
      past = widened(x, 1, 0)[:, :-1, x.shape[2] - self.reach :]  # segment 0 before the first
      return patches_to_rows(jnp.concatenate([past, x], axis=2))

    return self, tuple(map(joined, new))

  def applied(self, model):
    """The settings with mixers that see the patch before."""

    def one(block: Part) -> Part:
      inner = dict(block.context)['mixer']
      context = dict(block.context) | dict(
        mixer=dataclasses.replace(inner, obj=Seeing(inner.obj, self))
      )
      return dataclasses.replace(block, context=tuple(context.items()))

    return dataclasses.replace(model, blocks=tuple((n, one(b)) for n, b in model.blocks))


@dataclasses.dataclass(frozen=True)
class Seeing:
  """Builds a mixer that is called with `Beside` for its cache. No module of its own, so that
  parameters keep their names; no cache of the stack's, which would rule out recomputing.
  """

  make: Any
  beside: Beside

  def __call__(self, **how):
    mixer = self.make(**how)

    def call(x_BTD, ctx, cache=None):
      assert cache is None
      y, _, aux = mixer(x_BTD, ctx, self.beside)
      return y, None, aux

    return call


# ---- one byte after another


@struct.dataclass
class Recent:
  """Keys and values of the last P + R bytes, the newest at the end; segment 0 is an empty place.

  A byte sees those of its own patch and the last R of the patch before.
  """

  k_BSHK: jax.Array
  v_BSHK: jax.Array
  positions_BS: jax.Array
  segments_BS: jax.Array
  count_B: jax.Array  # bytes of the row so far
  reach: int = struct.field(pytree_node=False, default=0)

  def append(self, *new):
    assert new[0].shape[1] == 1, new[0].shape
    old = (self.k_BSHK, self.v_BSHK, self.positions_BS, self.segments_BS)
    arrays = [jnp.concatenate([a[:, 1:], b.astype(a.dtype)], axis=1) for a, b in zip(old, new)]
    size = self.k_BSHK.shape[1]
    ages_S = jnp.arange(size)[::-1]
    seen_B = self.count_B % (size - self.reach) + self.reach
    count_B = self.count_B + begun(self.count_B, new[3][:, 0])
    cache = Recent(*arrays, count_B, self.reach)
    shown_BS = jnp.where(ages_S <= seen_B[:, None], arrays[3], 0)
    return cache, (*arrays[:3], shown_BS)

  def since(self, place_B):
    """The cache of a stack, its next byte standing at this place of the row."""
    return self.replace(count_B=jnp.broadcast_to(jnp.maximum(place_B, 0), self.count_B.shape))


def recent(*, batch, length, heads, head_dim, dtype, window, reach: int) -> Recent:
  """As a cache part is called. What is in reach has one size, so that a window saves nothing."""
  del window
  shape = (batch, length, heads, head_dim)
  ints = jnp.zeros((batch, length), jnp.int32)
  zeros = functools.partial(jnp.zeros, shape, dtype)
  return Recent(zeros(), zeros(), ints, ints, jnp.zeros(batch, jnp.int32), reach)


def begun(count_B, segments_B):
  """Whether a byte belongs to the row: all from the first real one on."""
  return (count_B > 0) | (segments_B > 0)


@struct.dataclass
class Text:
  """A text so far. Like the caches of a stack, every array has the row on its second axis.

  tokens, segments, positions: (1, B, W), of the last bytes. count: (1, B), bytes of the row so far.
  slices: (1, B, P, local width), of the current patch; segment: (1, B), of that patch. globe,
  local: caches of the two stacks. fresh: nothing has been written yet.
  """

  tokens: jax.Array
  segments: jax.Array
  positions: jax.Array
  count: jax.Array
  slices: jax.Array
  segment: jax.Array
  globe: Any
  local: Any
  fresh: bool = struct.field(pytree_node=False, default=False)


def chosen(flags_B, new, old):
  """Caches of a stack: the new ones in some rows, the old ones in the others."""
  pick = lambda a, b: jnp.where(flags_B.reshape(1, -1, *(1,) * (a.ndim - 2)), a, b)
  return jax.tree.map(pick, new, old)
