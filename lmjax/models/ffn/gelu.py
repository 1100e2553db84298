"""Feed-forward with GELU: y = gelu(x W_up) W_down.

Hendrycks and Gimpel, 2016 (arXiv:1606.08415). `approximate=True` is the tanh form that GPT-2 uses;
BERT uses the exact one.
"""

import functools

import flax.linen as nn
import jax

from lmjax.models.ffn import _size
from lmjax.nn import params
from lmjax.parallel import remat
from lmjax.registry import register


@register('ffn')
class Gelu(nn.Module):
  """gelu(x W_up) W_down."""

  mult: float = 4.0
  hidden: int | None = None
  multiple_of: int = 1
  bias: bool = False
  approximate: bool = True

  check = staticmethod(_size.check)

  @nn.compact
  def __call__(self, x, ctx):
    width = x.shape[-1]
    hidden = _size.hidden_size(width, self.hidden, self.mult, self.multiple_of)
    h = params.dense(ctx, 'up', dict(embed=width), dict(mlp=hidden), bias=self.bias)(x)
    # Made again for the backward pass: cheaper than to keep what its derivative needs, another
    # array of this size.
    gelu = jax.checkpoint(functools.partial(nn.gelu, approximate=self.approximate))
    h = remat.tag(gelu(h), 'ffn_hidden')
    return params.dense(
      ctx, 'down', dict(mlp=hidden), dict(embed=width), role='residual', bias=self.bias
    )(h), {}
