"""Root-mean-square norm over all that a token has: y = g x / sqrt(mean(x^2) + eps), the mean and g
over every axis behind (batch, time).

Of the stream (B, T, D) it is `rms_norm`. Of queries and keys (B, T, H, K) it norms all heads of a
token together, with a gain for each coordinate: `gqa(qk_norm=token_rms_norm())` is the norm of OLMo
2 (2024, arXiv:2501.00656, section 2.1), where `rms_norm` norms each head apart (Qwen 3). Zhang and
Sennrich, 2019 (arXiv:1910.07467). Statistics in float32.
"""

import flax.linen as nn

from lmjax.models.norms import _rms
from lmjax.registry import register


@register('norm', scale_invariant=True)
class TokenRmsNorm(_rms.Rms):
  """y = g x / rms(x) of a token as a whole."""

  @nn.compact
  def __call__(self, x, ctx):
    return self.over(x, ctx, 2)
