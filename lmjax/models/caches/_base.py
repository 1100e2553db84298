"""A cache of keys and values as a pytree; where a token is written is all that differs between the
parts.
"""

from flax import struct
import jax
import jax.numpy as jnp


@struct.dataclass
class KeysValues:
  """k, v: (B, S, heads, head_dim); positions, segments: (B, S), segment 0 is an empty slot;
  written: tokens seen so far.
  """

  k_BSHK: jax.Array
  v_BSHK: jax.Array
  positions_BS: jax.Array
  segments_BS: jax.Array
  written: jax.Array
  ring: bool = struct.field(pytree_node=False, default=False)

  def append(self, k_BTHK, v_BTHK, positions_BT, segments_BT):
    """The cache with T more tokens, and what to attend to. In a ring T may not exceed its
    length.
    """
    size, new = self.k_BSHK.shape[1], k_BTHK.shape[1]
    slots = self.written + jnp.arange(new)
    slots = slots % size if self.ring else slots

    def put(old, value):
      return old.at[:, slots].set(value.astype(old.dtype), mode='drop')

    if self.ring and new > 1:
      # A block of new tokens may overwrite keys that its first tokens still need, so attend to old
      # and new side by side.
      seen = tuple(
        jnp.concatenate([a, b.astype(a.dtype)], axis=1)
        for a, b in zip(self.arrays(), (k_BTHK, v_BTHK, positions_BT, segments_BT))
      )
      if new > size:
        slots = slots[-size:]
        k_BTHK, v_BTHK = k_BTHK[:, -size:], v_BTHK[:, -size:]
        positions_BT, segments_BT = positions_BT[:, -size:], segments_BT[:, -size:]
    else:
      seen = None
    cache = self.replace(
      k_BSHK=put(self.k_BSHK, k_BTHK),
      v_BSHK=put(self.v_BSHK, v_BTHK),
      positions_BS=put(self.positions_BS, positions_BT),
      segments_BS=put(self.segments_BS, segments_BT),
      written=self.written + new,
    )
    return cache, seen or cache.arrays()

  def arrays(self):
    return self.k_BSHK, self.v_BSHK, self.positions_BS, self.segments_BS


def empty(batch: int, length: int, heads: int, head_dim: int, dtype, ring: bool) -> KeysValues:
  shape = (batch, length, heads, head_dim)
  ints = jnp.zeros((batch, length), jnp.int32)
  return KeysValues(
    jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), ints, ints, jnp.zeros((), jnp.int32), ring
  )
