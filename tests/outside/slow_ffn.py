"""A feed-forward that wastes time on purpose."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax.models.ffn import gelu
from lmjax.registry import register


@register('ffn')
class Slow(gelu.Gelu):
  """gelu, and sines that add nothing. No paper."""

  turns: int = 300

  @nn.compact
  def __call__(self, x, ctx):
    waste = jax.lax.stop_gradient(x)
    waste = jax.lax.fori_loop(0, self.turns, lambda _, w: jnp.sin(w + 1.0), waste)
    y, aux = super().__call__(x, ctx)
    return y + 1e-30 * waste, aux
