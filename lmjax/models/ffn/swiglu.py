"""Gated feed-forward: y = (silu(x W_gate) * x W_up) W_down.

Shazeer, 2020 (arXiv:2002.05202). `mult` of 8/3 keeps the parameter count of an ungated layer with
factor 4 (Llama).
"""

import flax.linen as nn

from lmjax.models.ffn import _size
from lmjax.nn import params
from lmjax.parallel import remat
from lmjax.registry import register


@register('ffn')
class Swiglu(nn.Module):
  """(silu(x W_gate) * x W_up) W_down."""

  mult: float = 8 / 3
  hidden: int | None = None
  multiple_of: int = 1
  bias: bool = False

  check = staticmethod(_size.check)

  @nn.compact
  def __call__(self, x, ctx):
    width = x.shape[-1]
    hidden = _size.hidden_size(width, self.hidden, self.mult, self.multiple_of)
    gate = params.dense(ctx, 'gate', dict(embed=width), dict(mlp=hidden), bias=self.bias)(x)
    up = params.dense(ctx, 'up', dict(embed=width), dict(mlp=hidden), bias=self.bias)(x)
    h = remat.tag(nn.silu(gate) * up, 'ffn_hidden')
    return params.dense(
      ctx, 'down', dict(mlp=hidden), dict(embed=width), role='residual', bias=self.bias
    )(h), {}
