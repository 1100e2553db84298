"""Rows of text cut over the mesh axis `sequence`, folded so that causal attention loads all devices
alike.

A row of T tokens is 2n chunks for n devices. In order, device i would hold chunks 2i and 2i + 1,
and the last device would see all keys, the first hardly any. Folded, it holds chunks i and
2n - 1 - i, and each pair of devices has equally much to do (Llama Team, 2024, arXiv:2407.21783,
section 3.3.2). Only the inside of a stack of layers is folded: attention goes by positions and
segments, which are folded alike, and everything else there acts on each token by itself.
"""

import jax
import jax.numpy as jnp

from lmjax.parallel import shard

AXIS = 'sequence'


def size() -> int:
  """Over how many devices rows are cut."""
  return shard.mesh().shape.get(AXIS, 1)


def folds(steps: int) -> bool:
  """Whether rows of so many tokens can be folded on this mesh."""
  return size() > 1 and steps % (2 * size()) == 0


def fold(x, *names):
  """x with its axis `time` folded; `names` has one logical axis (or None) per dimension."""
  return _moved(x, names, back=False)


def unfold(x, *names):
  """The inverse of `fold`."""
  return _moved(x, names, back=True)


def _moved(x, names, back: bool):
  n, axis = size(), names.index('time')
  home = [min(c, 2 * n - 1 - c) for c in range(2 * n)]  # the device of a chunk, folded
  ways = [[(c // 2, home[c]) for c in range(which, 2 * n, 2)] for which in (0, 1)]
  if back:
    ways = [[(b, a) for a, b in way] for way in ways]

  def here(x):
    i = jax.lax.axis_index(AXIS)
    first, second = jnp.split(x, 2, axis)
    # A device has one even and one odd chunk, folded too: the chunk i, and 2n - 1 - i.
    if back:
      first, second = _ordered(i, first, second)
    first, second = (jax.lax.ppermute(c, AXIS, way) for c, way in zip((first, second), ways))
    if not back:
      first, second = _ordered(i, first, second)
    return jnp.concatenate([first, second], axis)

  place = shard.spec(names, shape=x.shape)
  return shard.by_hand(here, place, place)(x)


def _ordered(i, a, b):
  """(even, odd) <-> (chunk i, chunk 2n - 1 - i)."""
  odd = i % 2 == 1
  return jnp.where(odd, b, a), jnp.where(odd, a, b)
