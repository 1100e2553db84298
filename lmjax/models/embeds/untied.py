"""Two tables: x = E[token], logits = h U^T. Llama and most large decoders.

`multiple_of` rounds both up; the added rows are never predicted. `scale` multiplies x.
"""

import flax.linen as nn

from lmjax.models.embeds import _table
from lmjax.nn import embedding
from lmjax.registry import register


@register('embed', tied=False)
class Untied(_table.Table):
  """E[token], and a matrix U of its own for the logits."""

  @nn.compact
  def __call__(self, tokens_BT, ctx):
    x, _, never = _table.look_up(self, tokens_BT, ctx)
    unembed = embedding.table(self, 'unembed', self.rows, self.width, 'unembed', ctx.scheme)
    return x, unembed, never
