"""Two tables: x = E[token], logits = h U^T. Llama and most large decoders.

`multiple_of` rounds both up; the added rows are never predicted.
"""

import flax.linen as nn

from lmjax.nn import embedding
from lmjax.registry import register


@register('embed', tied=False)
class Untied(nn.Module):
  """E[token], and a matrix U of its own for the logits."""

  vocab: int
  width: int
  dtype: object
  multiple_of: int = 1
  scale: float = 1.0

  @staticmethod
  def check(multiple_of, **_):
    if multiple_of < 1:
      raise ValueError(f'multiple_of={multiple_of}: a positive number of rows is expected')

  @nn.compact
  def __call__(self, tokens_BT, ctx):
    rows = embedding.round_up(self.vocab, self.multiple_of)
    matrix = embedding.table(self, 'table', rows, self.width, 'embed', ctx.scheme)
    unembed = embedding.table(self, 'unembed', rows, self.width, 'unembed', ctx.scheme)
    x = embedding.look_up(matrix, tokens_BT, self.dtype)
    return x * self.scale if self.scale != 1 else x, unembed, embedding.never(self.vocab, rows)
