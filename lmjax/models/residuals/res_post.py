"""Norm behind each sublayer, inside the branch: x <- x + norm(mixer(x)); x <- x + norm(ffn(x)).

Res-post-norm of Liu et al., 2021 (Swin V2, arXiv:2111.09883, section 3.2); OLMo 2's reordered norm
(2024, arXiv:2501.00656, section 2.1). The stream itself is never normed: what each branch adds has
the size of its gain, and sublayers see the stream as it is. Needs a final norm.
"""

import flax.linen as nn

from lmjax.models.residuals import _wiring
from lmjax.nn.dropout import dropout
from lmjax.registry import register


@register('residual')
class ResPost(_wiring.Layer):
  """x + norm(f(x)), twice."""

  dropout: float = 0.0

  @nn.compact
  def __call__(self, x, ctx, cache=None):
    drop = lambda y: dropout(self, y, self.dropout, ctx)
    y, cache, mixed = self.mix(x, ctx, cache)
    x = _wiring.place(x + drop(self.norm(name='norm_mixer')(y, ctx)))
    y, fed = self.feed(x, ctx)
    y = self.norm(name='norm_ffn')(y, ctx)
    return _wiring.place(x + drop(y)), cache, _wiring.join(mixed, fed)
