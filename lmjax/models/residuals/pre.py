"""Pre-norm residual: x <- x + mixer(norm(x)); x <- x + ffn(norm(x)).

Xiong et al., 2020 (arXiv:2002.04745); GPT-2 and nearly all decoders since. Needs a final norm on
the output of the stack.
"""

import flax.linen as nn

from lmjax.models.residuals import _wiring
from lmjax.nn.dropout import dropout
from lmjax.registry import register


@register('residual')
class Pre(_wiring.Layer):
  """x + f(norm(x)), twice."""

  dropout: float = 0.0

  @nn.compact
  def __call__(self, x, ctx, cache=None):
    drop = lambda y: dropout(self, y, self.dropout, ctx)
    y, cache, mixed = self.mix(self.norm(name='norm_mixer')(x, ctx), ctx, cache)
    x = _wiring.place(x + drop(y))
    y, fed = self.feed(self.norm(name='norm_ffn')(x, ctx), ctx)
    return _wiring.place(x + drop(y)), cache, _wiring.join(mixed, fed)
