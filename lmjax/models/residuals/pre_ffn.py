"""Pre-norm residual without the first norm: x <- x + mixer(x); x <- x + ffn(norm(x)).

For the first layer of a model whose embedding is normed already (`model.embed_norm`), where `pre`
would norm twice: ModernBERT (Warner et al., 2024, arXiv:2412.13663, section 2.1.1).
"""

import flax.linen as nn

from lmjax.models.residuals import _wiring
from lmjax.nn.dropout import dropout
from lmjax.registry import register


@register('residual')
class PreFfn(_wiring.Layer):
  """x + mixer(x), x + ffn(norm(x))."""

  dropout: float = 0.0

  @nn.compact
  def __call__(self, x, ctx, cache=None):
    drop = lambda y: dropout(self, y, self.dropout, ctx)
    y, cache, mixed = self.mix(x, ctx, cache)
    x = _wiring.place(x + drop(y))
    y, fed = self.feed(self.norm(name='norm_ffn')(x, ctx), ctx)
    return _wiring.place(x + drop(y)), cache, _wiring.join(mixed, fed)
