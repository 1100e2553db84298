"""Feed-forward with ReLU: y = max(x W_up, 0) W_down.

Vaswani et al., 2017 (arXiv:1706.03762, equation 2); T5 (Raffel et al., 2020, arXiv:1910.10683)
without biases.
"""

import flax.linen as nn

from lmjax.models.ffn import _sized
from lmjax.registry import register


@register('ffn')
class Relu(_sized.Sized):
  """max(x W_up, 0) W_down."""

  @nn.compact
  def __call__(self, x, ctx):
    return _sized.down(self, ctx, nn.relu(_sized.up(self, ctx, x)), x.shape[-1]), {}
