"""Post-norm residual: x <- norm(x + mixer(x)); x <- norm(x + ffn(x)).

Vaswani et al., 2017 (arXiv:1706.03762); BERT. The stack's output is already normed: set
`model.final_norm=''`. Trains less stably than `pre` without warm-up (Xiong et al., 2020,
arXiv:2002.04745).
"""

import flax.linen as nn

from lmjax.models.residuals import _wiring
from lmjax.nn.dropout import dropout
from lmjax.registry import register


@register('residual')
class Post(_wiring.Layer):
  """norm(x + f(x)), twice."""

  dropout: float = 0.0

  @nn.compact
  def __call__(self, x, ctx, cache=None):
    drop = lambda y: dropout(self, y, self.dropout, ctx)
    y, cache, mixed = self.mix(x, ctx, cache)
    x = _wiring.place(self.norm(name='norm_mixer')(x + drop(y), ctx))
    y, fed = self.feed(x, ctx)
    return (
      _wiring.place(self.norm(name='norm_ffn')(x + drop(y), ctx)),
      cache,
      _wiring.join(mixed, fed),
    )
