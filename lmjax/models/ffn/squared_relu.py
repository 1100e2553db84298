"""Feed-forward with squared ReLU: y = max(0, x W_up)^2 W_down.

Primer (So et al., 2021, arXiv:2109.08668).
"""

import flax.linen as nn
import jax.numpy as jnp

from lmjax.models.ffn import _size
from lmjax.nn import params
from lmjax.parallel import remat
from lmjax.registry import register


@register('ffn')
class SquaredRelu(nn.Module):
  """relu(x W_up)^2 W_down."""

  mult: float = 4.0
  hidden: int | None = None
  multiple_of: int = 1
  bias: bool = False

  check = staticmethod(_size.check)

  @nn.compact
  def __call__(self, x, ctx):
    width = x.shape[-1]
    hidden = _size.hidden_size(width, self.hidden, self.mult, self.multiple_of)
    h = params.dense(ctx, 'up', dict(embed=width), dict(mlp=hidden), bias=self.bias)(x)
    h = remat.tag(jnp.square(nn.relu(h)), 'ffn_hidden')
    return params.dense(
      ctx, 'down', dict(mlp=hidden), dict(embed=width), role='residual', bias=self.bias
    )(h), {}
