"""Gated feed-forward with GELU: y = (gelu(x W_gate) * x W_up) W_down.

Shazeer, 2020 (arXiv:2002.05202); T5 1.1 with `approximate=True`, the tanh form; ModernBERT with the
exact one. `mult` of 8/3 keeps the parameter count of an ungated layer with factor 4.
"""

import flax.linen as nn
import jax

from lmjax.models.ffn import _sized
from lmjax.registry import register


@register('ffn')
class Geglu(_sized.Sized):
  """(gelu(x W_gate) * x W_up) W_down."""

  mult: float = 8 / 3
  approximate: bool = True

  @nn.compact
  def __call__(self, x, ctx):
    gated = jax.checkpoint(  # as in `gelu`
      lambda gate, up: nn.gelu(gate, approximate=self.approximate) * up
    )
    h = gated(_sized.up(self, ctx, x, 'gate'), _sized.up(self, ctx, x))
    return _sized.down(self, ctx, h, x.shape[-1]), {}
