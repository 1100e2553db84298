"""One table for input and output: x = E[token], logits = h E^T.

Press and Wolf, 2017 (arXiv:1608.05859). `multiple_of` rounds the table up (GPT-2's 50257 to 50304
rows), the added rows are never predicted. `bias` adds one value per word to the logits (BERT).
`scale` multiplies x (Gemma uses sqrt(width)).
"""

import flax.linen as nn

from lmjax.models.embeds import _table
from lmjax.nn import params
from lmjax.parallel.facts import Fact
from lmjax.registry import register


@register('embed', tied=True)
class Tied(_table.Table):
  """E[token], and E again as the unembedding."""

  bias: bool = False

  @nn.compact
  def __call__(self, tokens_BT, ctx):
    x, matrix, bias = _table.look_up(self, tokens_BT, ctx)
    if self.bias:
      own = params.param(self, 'bias', (self.rows,), Fact(('vocab',), (), 'bias'), ctx.scheme)
      bias = own if bias is None else own + bias
    return x, matrix, bias
