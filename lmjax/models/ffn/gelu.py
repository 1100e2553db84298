"""Feed-forward with GELU: y = gelu(x W_up) W_down.

Hendrycks and Gimpel, 2016 (arXiv:1606.08415). `approximate=True` is the tanh form that GPT-2 uses;
BERT uses the exact one.
"""

import functools

import flax.linen as nn
import jax

from lmjax.models.ffn import _sized
from lmjax.registry import register


@register('ffn')
class Gelu(_sized.Sized):
  """gelu(x W_up) W_down."""

  approximate: bool = True

  @nn.compact
  def __call__(self, x, ctx):
    # Made again for the backward pass: cheaper than to keep what its derivative needs, another
    # array of this size.
    gelu = jax.checkpoint(functools.partial(nn.gelu, approximate=self.approximate))
    return _sized.down(self, ctx, gelu(_sized.up(self, ctx, x)), x.shape[-1]), {}
