"""Two tables: x = E[token], logits = h U^T (+ b). Llama and most large decoders.

`multiple_of` rounds both up; the added rows are never predicted. `scale` multiplies x. `bias` adds
one value per word to the logits, as GPT-J does.
"""

import flax.linen as nn

from lmjax.models.embeds import _table
from lmjax.nn import embedding
from lmjax.nn import params
from lmjax.parallel.facts import Fact
from lmjax.registry import register


@register('embed', tied=False)
class Untied(_table.Table):
  """E[token], and a matrix U of its own for the logits."""

  bias: bool = False

  @nn.compact
  def __call__(self, tokens_BT, ctx):
    x, _, bias = _table.look_up(self, tokens_BT, ctx)
    unembed = embedding.table(
      self, 'unembed', self.rows, self.width, 'unembed', ctx.scheme, self.dtype
    )
    if self.bias:
      own = params.param(self, 'bias', (self.rows,), Fact(('vocab',), (), 'bias'), ctx.scheme)
      bias = own if bias is None else own + bias
    return x, unembed, bias
