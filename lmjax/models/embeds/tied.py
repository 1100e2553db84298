"""One table for input and output: x = E[token], logits = h E^T.

Press and Wolf, 2017 (arXiv:1608.05859). `multiple_of` rounds the table up (GPT-2's 50257 to 50304
rows), the added rows are never predicted. `bias` adds one value per word to the logits (BERT).
`scale` multiplies x (Gemma uses sqrt(width)).
"""

import flax.linen as nn

from lmjax.nn import embedding
from lmjax.nn import params
from lmjax.parallel.facts import Fact
from lmjax.registry import register


@register('embed', tied=True)
class Tied(nn.Module):
  """E[token], and E again as the unembedding."""

  vocab: int
  width: int
  dtype: object
  multiple_of: int = 1
  bias: bool = False
  scale: float = 1.0

  @staticmethod
  def check(multiple_of, **_):
    if multiple_of < 1:
      raise ValueError(f'multiple_of={multiple_of}: a positive number of rows is expected')

  @nn.compact
  def __call__(self, tokens_BT, ctx):
    rows = embedding.round_up(self.vocab, self.multiple_of)
    matrix = embedding.table(self, 'table', rows, self.width, 'embed', ctx.scheme)
    x = embedding.look_up(matrix, tokens_BT, self.dtype)
    bias = embedding.never(self.vocab, rows)
    if self.bias:
      own = params.param(self, 'bias', (rows,), Fact(('vocab',), (), 'bias'), ctx.scheme)
      bias = own if bias is None else own + bias
    return x * self.scale if self.scale != 1 else x, matrix, bias
