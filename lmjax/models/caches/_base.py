"""A cache of keys and values as a pytree; where a token is written is all that differs between the
parts. Every array has the row in front, so that rows can be gathered, and each row its own number
of tokens, so that rows can go back by different numbers.
"""

from flax import struct
import jax
import jax.numpy as jnp

from lmjax import kinds


@struct.dataclass
class KeysValues:
  """k, v: (B, S, heads, head_dim); positions, segments: (B, S), segment 0 is an empty slot;
  written: (B,), tokens seen so far; spare: tokens by which a ring may go back.
  """

  k_BSHK: jax.Array
  v_BSHK: jax.Array
  positions_BS: jax.Array
  segments_BS: jax.Array
  written_B: jax.Array
  ring: bool = struct.field(pytree_node=False, default=False)
  spare: int = struct.field(pytree_node=False, default=0)

  def append(self, k_BTHK, v_BTHK, positions_BT, segments_BT):
    """The cache with T more tokens, and what to attend to."""
    size, new = self.k_BSHK.shape[1], k_BTHK.shape[1]
    slots_BT = self.written_B[:, None] + jnp.arange(new)
    slots_BT = slots_BT % size if self.ring else slots_BT

    if self.ring and new > 1:
      # A block of new tokens may overwrite keys that its first tokens still need, so attend to old
      # and new side by side.
      seen = tuple(
        jnp.concatenate([a, b.astype(a.dtype)], axis=1)
        for a, b in zip(self.arrays(), (k_BTHK, v_BTHK, positions_BT, segments_BT))
      )
      if new > size:
        slots_BT = slots_BT[:, -size:]
        k_BTHK, v_BTHK = k_BTHK[:, -size:], v_BTHK[:, -size:]
        positions_BT, segments_BT = positions_BT[:, -size:], segments_BT[:, -size:]
    else:
      seen = None
    cache = self.replace(
      k_BSHK=_put(self.k_BSHK, slots_BT, k_BTHK),
      v_BSHK=_put(self.v_BSHK, slots_BT, v_BTHK),
      positions_BS=_put(self.positions_BS, slots_BT, positions_BT),
      segments_BS=_put(self.segments_BS, slots_BT, segments_BT),
      written_B=self.written_B + new,
    )
    return cache, seen or cache.arrays()

  def back(self, dropped_B, most: int):
    """The cache without the last dropped_B tokens of each row, `most` of them at most.

    Raises Unsupported for a ring too short: it has overwritten what is in reach again.
    """
    size = self.k_BSHK.shape[1]
    if self.ring and most > self.spare:
      raise kinds.Unsupported(
        f'a cache that keeps only the window has spare={self.spare}: decoding that goes back by '
        f'{most} tokens needs spare={most} or the cache full()'
      )
    ages_BS = self.written_B[:, None] - 1 - jnp.arange(size)  # of slots, the last token's being 0
    ages_BS = ages_BS % size if self.ring else ages_BS
    gone_BS = (ages_BS >= 0) & (ages_BS < dropped_B[:, None])
    return self.replace(
      segments_BS=jnp.where(gone_BS, 0, self.segments_BS), written_B=self.written_B - dropped_B
    )

  def unpacked(self, rows_B, marks_B, length: int):
    """Rows of `length` slots, each with the tokens of one segment of a row, on the right of the
    slots that there were, whatever was between them. Raises Unsupported for a ring: it keeps only
    the last tokens of a row.
    """
    if self.ring:
      raise kinds.Unsupported('a cache that keeps only the window has not kept all of a packed row')
    size = self.k_BSHK.shape[1]
    own_BS = self.segments_BS[rows_B] == marks_B[:, None]
    order_BS = jnp.argsort(own_BS, axis=1, stable=True)  # as they stood, the own ones behind others

    def taken(a_BS):
      order = order_BS.reshape(*order_BS.shape, *[1] * (a_BS.ndim - 2))
      found = jnp.take_along_axis(a_BS[rows_B], order, axis=1)
      return jnp.pad(found, ((0, 0), (0, length - size), *[(0, 0)] * (a_BS.ndim - 2)))

    return self.replace(
      k_BSHK=taken(self.k_BSHK),
      v_BSHK=taken(self.v_BSHK),
      positions_BS=taken(self.positions_BS),
      segments_BS=jnp.pad(jnp.sort(own_BS, axis=1).astype(jnp.int32), ((0, 0), (0, length - size))),
      written_B=jnp.full(rows_B.shape, size, jnp.int32),
    )

  def arrays(self):
    return self.k_BSHK, self.v_BSHK, self.positions_BS, self.segments_BS


def _put(old_BS, slots_BT, new_BT):
  """Rows with new entries in their slots; slots beyond the end are dropped."""
  one = lambda old_S, slots_T, new_T: old_S.at[slots_T].set(new_T.astype(old_S.dtype), mode='drop')
  return jax.vmap(one)(old_BS, slots_BT, new_BT)


def empty(
  batch: int, length: int, heads: int, head_dim: int, dtype, ring: bool, spare: int = 0
) -> KeysValues:
  shape = (batch, length, heads, head_dim)
  ints = jnp.zeros((batch, length), jnp.int32)
  return KeysValues(
    jnp.zeros(shape, dtype),
    jnp.zeros(shape, dtype),
    ints,
    ints,
    jnp.zeros(batch, jnp.int32),
    ring,
    spare,
  )
