"""Peri-LN: x <- x + out(f(in(x))): a norm before each sublayer and another on what it returns,
before it is added; the stream itself is never normed inside a layer.

Kim et al., 2025 (arXiv:2502.02732); Gemma 2 and OLMo 2 have it in part. Four norms a layer, each
with gains of its own. Every branch adds a vector whose rms is the gain of its output norm, so that
the variance of the stream grows linearly with depth, whatever the size of the sublayer's weights;
their gradient falls as they grow. The paper norms the embeddings too (`model.embed_norm`) and the
output of the stack (`model.final_norm`).
"""

import flax.linen as nn

from lmjax.models.residuals import _wiring
from lmjax.nn.dropout import dropout
from lmjax.registry import register


@register('residual')
class PeriLn(_wiring.Layer):
  """x + out(f(in(x))), twice."""

  dropout: float = 0.0

  @nn.compact
  def __call__(self, x, ctx, cache=None):
    drop = lambda y: dropout(self, y, self.dropout, ctx)
    y, cache, mixed = self.mix(self.norm(name='norm_mixer')(x, ctx), ctx, cache)
    x = _wiring.place(x + drop(self.norm(name='norm_mixer_out')(y, ctx)))
    y, fed = self.feed(self.norm(name='norm_ffn')(x, ctx), ctx)
    y = self.norm(name='norm_ffn_out')(y, ctx)
    return _wiring.place(x + drop(y)), cache, _wiring.join(mixed, fed)
