"""What attention sees in each recursion, and the caches that follow from it.

recursion_wise: keys and values of the tokens that a recursion takes, a cache for each recursion.
share_first: those of the first recursion for all others, and one cache. A mixer is not told: what
it is given as a cache shows it the keys to attend to.
"""

from typing import Any

from flax import struct
import jax
import jax.numpy as jnp


@struct.dataclass
class Watched:
  """A cache, or none, that keeps what it showed last: (keys, values, positions, segments)."""

  inner: Any = None
  seen: Any = None

  def append(self, *new):
    inner, seen = (None, new) if self.inner is None else self.inner.append(*new)
    return Watched(inner, seen), seen


@struct.dataclass
class Fixed:
  """Shows the same keys and values whatever comes; what is made of new tokens is never used, so
  that the compiler leaves it out.
  """

  seen: Any

  def append(self, *new):
    del new
    return self, self.seen


class RecursionWise:
  """Each recursion with its own keys; `caches`: by block, stacked by recursion, or None."""

  def __init__(self, caches):
    self.caches, self.out = caches, []

  def given(self, r: int, blocks: int):
    return None if self.caches is None else jax.tree.map(lambda a: a[r], self.caches)

  def returned(self, r: int, caches):
    self.out.append(caches)

  def result(self):
    return None if self.caches is None else jax.tree.map(lambda *a: jnp.stack(a), *self.out)


class ShareFirst:
  """The keys of the first recursion for all; `caches`: by block, stacked once, or None."""

  def __init__(self, caches):
    self.caches, self.watched = caches, ()

  def given(self, r: int, blocks: int):
    if r:
      return tuple(Fixed(w.seen) for w in self.watched)
    if self.caches is None:
      return (Watched(),) * blocks
    return tuple(Watched(jax.tree.map(lambda a: a[0], c)) for c in self.caches)

  def returned(self, r: int, caches):
    if r == 0:
      self.watched = caches

  def result(self):
    if self.caches is None:
      return None
    return jax.tree.map(lambda a: a[None], tuple(w.inner for w in self.watched))


POLICIES = {'recursion_wise': RecursionWise, 'share_first': ShareFirst}
