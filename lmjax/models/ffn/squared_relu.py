"""Feed-forward with squared ReLU: y = max(0, x W_up)^2 W_down.

Primer (So et al., 2021, arXiv:2109.08668).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax.models.ffn import _sized
from lmjax.registry import register


@register('ffn')
class SquaredRelu(_sized.Sized):
  """relu(x W_up)^2 W_down."""

  @nn.compact
  def __call__(self, x, ctx):
    square = jax.checkpoint(lambda h: jnp.square(nn.relu(h)))  # as in `gelu`
    return _sized.down(self, ctx, square(_sized.up(self, ctx, x)), x.shape[-1]), {}
