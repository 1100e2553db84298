"""Root-mean-square norm: y = g x / sqrt(mean(x^2) + eps), over the last axis.

Zhang and Sennrich, 2019 (arXiv:1910.07467). Invariant to the scale of x (up to eps), not to a
shift. Statistics are taken in float32 and the result is returned in the dtype of x.
"""

import flax.linen as nn

from lmjax.models.norms import _rms
from lmjax.registry import register


@register('norm', scale_invariant=True)
class RmsNorm(_rms.Rms):
  """y = g x / rms(x)."""

  @nn.compact
  def __call__(self, x, ctx):
    return self.over(x, ctx, -1)
