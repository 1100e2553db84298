"""A text of `megabyte` byte by byte: a step of the local model each, one of the global model where
a byte ends a patch in some row.

Axes as in `_megabyte`.
"""

import functools
import types

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax.models.architectures import _megabyte as lib
from lmjax.nn import stack


def empty(net, kind, batch: int, length: int) -> lib.Text:
  """A text of `length` bytes at most, nothing of it written."""
  globe, local = net.sides()
  p, reach = net.patch, net.cross_patch_attention
  behind = p + sum(n - 1 for n in net.conv_patch_encoder)
  ints = jnp.zeros((1, batch, behind), jnp.int32)
  # A prompt fills its last patch, which what follows begins anew.
  entries = -(-length // p) + 1
  near = types.SimpleNamespace(obj=functools.partial(lib.recent, reach=reach), args=())
  return lib.Text(
    tokens=ints,
    segments=ints,
    positions=ints,
    count=jnp.zeros((1, batch), jnp.int32),
    slices=jnp.zeros((1, batch, p, local.width), local.dtype),
    segment=jnp.zeros((1, batch), jnp.int32),
    globe=stack.init_cache(globe, kind, batch, entries),
    local=stack.init_cache(local, near, batch, p + reach),
    fresh=True,
  )


def go_on(net, text: lib.Text, tokens_BT, ctx):
  """(hidden, text, aux) after more bytes."""
  ones = jnp.ones_like(tokens_BT)
  segments_BT = ones if ctx.segments_BT is None else ctx.segments_BT
  ctx = ctx.replace(segments_BT=segments_BT)
  if text.fresh and tokens_BT.shape[1] > 1:
    return prompt(net, text, tokens_BT, ctx)
  text = text.replace(fresh=False)
  places = (tokens_BT, segments_BT, ctx.positions_BT)
  if tokens_BT.shape[1] == 1:
    text, hidden_BL = step(net, text, [x[:, 0] for x in places], ctx)
    return hidden_BL[:, None], text, {}
  one = lambda net, text, x: step(net, text, x, ctx)
  text, hidden_TBL = along(one)(net, text, [x.T for x in places])
  return hidden_TBL.swapaxes(0, 1), text, {}


def along(f):
  """f(net, carry, x) for each x, one after another."""
  return nn.scan(f, variable_broadcast=True, split_rngs={'params': False, 'dropout': True})


def step(net, text: lib.Text, places, ctx):
  """(text, hidden (B, L)) after one more byte in each row."""
  token_B, segment_B, position_B = places
  count_B, p = text.count[0], net.patch
  begun_B, place_B = lib.begun(count_B, segment_B), count_B % p
  ends_B = begun_B & (place_B == 0)  # the byte is the last of a patch vector
  push = lambda old, new_B: jnp.concatenate([old[:, :, 1:], new_B[None, :, None]], axis=2)
  text = text.replace(
    tokens=push(text.tokens, token_B),
    segments=push(text.segments, segment_B),
    positions=push(text.positions, position_B),
    count=(count_B + begun_B)[None],
    segment=jnp.where(ends_B, segment_B, text.segment),
  )
  ctx = ctx.replace(segments_BT=segment_B[:, None], positions_BT=position_B[:, None])
  look = functools.partial(look_around, ctx=ctx)
  text = nn.cond(jnp.any(ends_B), look, lambda _, text, __: text, net, text, ends_B)
  at_B11 = place_B[:, None, None]
  slice_B1L = jnp.take_along_axis(text.slices[0], at_B11, axis=1)
  slice_B1L = jnp.where((text.segment[0] == segment_B)[:, None, None], slice_B1L, 0)
  x_B1L = net.local_sum(token_B[:, None], (place_B == 0)[:, None], slice_B1L, ctx)
  local, hidden_BL = narrow(net, text.local, x_B1L, ctx, ends_B)
  return text.replace(local=local), hidden_BL


def look_around(net, text: lib.Text, ends_B, ctx):
  """One step of the global model in the rows whose patch vector is complete."""
  own = ctx.replace(positions_BT=text.positions[0], segments_BT=text.segments[0])
  g_B1D = net.patches(text.tokens[0], own, last=True)
  segments_B1 = jnp.where(ends_B[:, None], ctx.segments_BT, 0)
  ctx = ctx.replace(positions_BT=ctx.positions_BT // net.patch, segments_BT=segments_B1)
  z_B1D, globe, _ = net.global_model(g_B1D, ctx, text.globe)
  slices = jnp.where(ends_B[:, None, None], net.slices(z_B1D, ctx)[:, 0], text.slices)
  return text.replace(slices=slices, globe=lib.chosen(ends_B, globe, text.globe))


def narrow(net, caches, x_B1L, ctx, starts_B):
  """(caches, hidden (B, L)) after one step of the local model; a patch begins with empty ones, but
  for what it sees of the one before.
  """
  if not net.cross_patch_attention:
    caches = lib.chosen(starts_B, jax.tree.map(jnp.zeros_like, caches), caches)
  hidden_B1L, caches, _ = net.local_model(x_B1L, ctx, caches)
  return caches, hidden_B1L[:, 0]


def prompt(net, text: lib.Text, tokens_BT, ctx):
  """(hidden, text, aux) after the first bytes, all patches at once."""
  steps, p = tokens_BT.shape[1], net.patch
  rows_BT, own, start_B = net.aligned(tokens_BT, ctx)
  count_B = jnp.where(jnp.any(ctx.segments_BT > 0, axis=1), steps - start_B, 0)
  around = net.by_patch(own)
  # Patches, like prompts, end in one column: behind its last entry a cache has no room to spare.
  patches = rows_BT.shape[1] // p
  spare_B = patches + -count_B // p
  turn = lambda x: lib.turned(x, -spare_B % patches)
  z_BKD, globe, wide = net.global_model(
    turn(net.patches(rows_BT, own)),
    around.replace(positions_BT=turn(around.positions_BT), segments_BT=turn(around.segments_BT)),
    text.globe,
  )
  slices_BKPL = net.slices(lib.turned(z_BKD, spare_B % patches), ctx)
  x_BTL = net.local_input(rows_BT, own, slices_BKPL)
  hidden_BTL, near = net.within(x_BTL, own)
  back = lambda x: lib.turned(x, -start_B % x.shape[1])[:, :steps]
  last_B1 = jnp.maximum(count_B - 1, 0)[:, None] // p
  pick = lambda x: jnp.take_along_axis(x, last_B1.reshape(-1, *(1,) * (x.ndim - 1)), axis=1)
  recent = lambda old, new: jnp.concatenate([old[0], new], axis=1)[None, :, -old.shape[2] :]
  text = text.replace(
    tokens=recent(text.tokens, tokens_BT),
    segments=recent(text.segments, ctx.segments_BT),
    positions=recent(text.positions, ctx.positions_BT),
    count=count_B[None],
    slices=pick(slices_BKPL)[None, :, 0],
    segment=pick(around.segments_BT)[None, :, 0],
    globe=globe,
    local=recalled(net, text.local, back(x_BTL), ctx, count_B),
    fresh=False,
  )
  return back(hidden_BTL), text, {**wide, **near}


def recalled(net, caches, x_BTL, ctx, count_B):
  """Caches of the local model after whole rows: its steps through the last patch again, and through
  as many before it as there are layers that see the patch before theirs.
  """
  steps, p = x_BTL.shape[1], net.patch
  layers = net.local_model.model.depth if net.cross_patch_attention else 0
  last = min(steps, p * (1 + layers))
  place_TB = jnp.arange(steps - last, steps)[:, None] - steps + count_B
  starts_TB = (place_TB >= 0) & (place_TB % p == 0)

  def one(net, caches, x):
    x_BL, segment_B, position_B, starts_B = x
    now = ctx.replace(segments_BT=segment_B[:, None], positions_BT=position_B[:, None])
    return narrow(net, caches, x_BL[:, None], now, starts_B)

  is_recent = lambda x: isinstance(x, lib.Recent)
  begin = lambda x: x.since(place_TB[0]) if is_recent(x) else x
  caches = jax.tree.map(begin, caches, is_leaf=is_recent)
  late = lambda x: x[:, steps - last :].swapaxes(0, 1)
  xs = (late(x_BTL), late(ctx.segments_BT), late(ctx.positions_BT), starts_TB)
  return along(one)(net, caches, xs)[0]
