"""Gated feed-forward: y = (silu(x W_gate) * x W_up) W_down.

Shazeer, 2020 (arXiv:2002.05202). `mult` of 8/3 keeps the parameter count of an ungated layer with
factor 4 (Llama).
"""

import flax.linen as nn
import jax

from lmjax.models.ffn import _sized
from lmjax.registry import register


@register('ffn')
class Swiglu(_sized.Sized):
  """(silu(x W_gate) * x W_up) W_down."""

  mult: float = 8 / 3

  @nn.compact
  def __call__(self, x, ctx):
    gated = jax.checkpoint(lambda gate, up: nn.silu(gate) * up)  # as in `gelu`
    h = gated(_sized.up(self, ctx, x, 'gate'), _sized.up(self, ctx, x))
    return _sized.down(self, ctx, h, x.shape[-1]), {}
