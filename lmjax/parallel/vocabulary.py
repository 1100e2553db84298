"""How tokens and a table of words lie over a mesh, for code that is written for single pieces: each
device has some tokens, some words, and all of these words' width (gathered, ZeRO-3).
"""

import math
from typing import NamedTuple

import jax
from jax.sharding import PartitionSpec as P

from lmjax.parallel import shard


class Axes(NamedTuple):
  """Mesh axes: of rows and time, of words, and those that cut the width of a stored table. Without
  a mesh there are none, and sums are what they are given.
  """

  place: P = P()
  words: tuple[str, ...] = ()
  width: tuple[str, ...] = ()

  @property
  def tokens(self) -> tuple[str, ...]:
    return tuple(a for entry in self.place for a in shard.axes_of(entry))

  def scattered(self, sums_VD):
    """Adds up over all tokens; each device keeps its part of the width."""
    if self.width:
      sums_VD = jax.lax.psum_scatter(sums_VD, self.width, scatter_dimension=1, tiled=True)
    return summed(sums_VD, tuple(a for a in self.tokens if a not in self.width))


def axes(tokens_BT) -> Axes:
  place = shard.spec(('batch', 'time'), shape=tokens_BT.shape)
  return Axes(place, *(shard.axes_of(shard.spec((name,))[0]) for name in ('vocab', 'embed')))


def summed(x, axes):
  return jax.lax.psum(x, axes) if axes else x


def divides(table_shape, tokens_shape) -> bool:
  """Whether there is a mesh, and all that it cuts divides."""
  if shard.mesh().empty:
    return False
  count = lambda name: math.prod(
    shard.mesh().shape[a] for a in shard.axes_of(shard.spec((name,))[0])
  )
  sizes = (*table_shape, *tokens_shape)
  return all(
    n % count(name) == 0 for name, n in zip(('vocab', 'embed', 'batch', 'time'), sizes, strict=True)
  )
