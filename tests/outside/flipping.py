"""A feed-forward part that lives outside lmjax and flips one bit of one matrix product, once."""

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.models.ffn import gelu

calls = 0


class Flipping(gelu.Gelu):
  """gelu, whose result has a flipped bit at call number `at` of this process (counted from 1)."""

  at: int = 0
  bit: int = 22

  def __call__(self, x, ctx):
    y, aux = super().__call__(x, ctx)
    fixed = jax.lax.stop_gradient(y)
    faulty = jax.pure_callback(self._faulty, jax.ShapeDtypeStruct(y.shape, y.dtype), fixed)
    return y + (faulty - fixed), aux

  def _faulty(self, y):
    global calls
    calls += 1
    words = np.array(y).view(np.uint32)
    if calls == self.at:
      words.reshape(-1)[words.size // 2] ^= np.uint32(1 << self.bit)
    return jnp.asarray(words.view(np.float32))
