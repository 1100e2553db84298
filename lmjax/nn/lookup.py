"""Looking tokens up in a table whose words lie apart over devices, collectives written out.

Each device has some words, looks its tokens up among them, and adds zeros for all others to the sum
over devices (Shoeybi et al., 2019, arXiv:1909.08053, section 3). The gradient is added up in
float32: over the tokens of a device by itself, then over devices, each of which gets its part of
the width (ZeRO-3). The partitioner would gather activations or reduce whole tables instead.
"""

import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from lmjax.parallel import shard
from lmjax.parallel import vocabulary


@jax.custom_vjp
def rows(table_VD, tokens_BT):
  """(B, T, D) of a table that is whole along its width."""
  return _rows(table_VD, tokens_BT)


def _rows(table_VD, tokens_BT):
  axes = vocabulary.axes(tokens_BT)

  def here(table, tokens):
    at, own = _own(tokens, len(table), axes.words)
    return vocabulary.summed(jnp.where(own[..., None], table[at], 0), axes.words)

  run = shard.by_hand(here, (P(axes.words or None, None), axes.place), P(*axes.place, None))
  return run(table_VD, tokens_BT)


def _forward(table_VD, tokens_BT):
  return _rows(table_VD, tokens_BT), (tokens_BT, jnp.zeros((len(table_VD), 0), table_VD.dtype))


def _backward(kept, dy_BTD):
  tokens_BT, like = kept
  axes = vocabulary.axes(tokens_BT)
  pieces = math.prod(shard.mesh().shape[a] for a in axes.words)
  held = len(like) // pieces

  def here(tokens, dy):
    at, own = _own(tokens, held, axes.words)
    at = jnp.where(own, at, held)  # out of range: dropped
    sums = jnp.zeros((held, dy.shape[-1]), jnp.float32)
    sums = sums.at[at].add(dy.astype(jnp.float32), mode='drop')
    return axes.scattered(sums).astype(like.dtype)

  out = P(axes.words or None, axes.width or None)
  run = shard.by_hand(here, (axes.place, P(*axes.place, None)), out)
  return run(tokens_BT, dy_BTD), None


rows.defvjp(_forward, _backward)


def _own(tokens, held: int, words):
  """(places among the words of this device, whether they are its own)."""
  first = jax.lax.axis_index(words) * held if words else 0
  at = tokens - first
  own = (at >= 0) & (at < held)
  return jnp.where(own, at, 0), own
