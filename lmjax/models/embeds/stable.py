"""The stable embedding: x = norm(E[token]), E uniform after Xavier, before positions are added.

  E ~ U(-a, a),  a = sqrt(6 / (rows + width))        x = norm(E[token]) * scale

Dettmers et al., 2021 (arXiv:2110.02861), section 2.3: uniform values have no outliers and normed
vectors keep a variance of about 1, so that the gradients of the table have fewer extremes. The
optimizer part `eight_bit` keeps its states of the table in 32 bits, the other half of the method.
Xavier's values (Glorot and Bengio, 2010) are the method's own, whatever `model.init` says of
tables.

`norm` is the paper's layer norm, with gain and bias; it acts on the looked-up vectors alone, unlike
`model.embed_norm`, which acts behind the positions. `tied=True`: logits = h E^T, of E itself, not
normed; `tied=False`: a matrix of its own, made as `model.init` says. `multiple_of` rounds the
table up (rows, above), the added rows are never predicted.
"""

from typing import Annotated

import flax.linen as nn
import jax

from lmjax.models.embeds import _table
from lmjax.nn import embedding
from lmjax.parallel import facts
from lmjax.parallel import shard
from lmjax.parallel.facts import Fact
from lmjax.registry import Part, register


@register('embed', tied=lambda args: args['tied'])
class Stable(_table.Table):
  """norm(E[token]), and E or a matrix of its own for the logits."""

  norm: Annotated[Part, 'norm'] = 'layer_norm()'
  tied: bool = True

  @staticmethod
  def check(norm, **others):
    if norm is None:
      raise ValueError('norm=None: a norm is expected, such as layer_norm()')
    _table.Table.check(**others)

  @nn.compact
  def __call__(self, tokens_BT, ctx):
    fact, shape = Fact(('vocab', 'embed'), ('vocab',), 'embed'), (self.rows, self.width)
    init = facts.boxed(jax.nn.initializers.xavier_uniform(), fact)
    matrix = shard.gather(self.param('table', init, shape, ctx.scheme.param_dtype), fact.names)
    x = self.norm(name='norm')(embedding.look_up(matrix, tokens_BT, self.dtype), ctx)
    x = x * self.scale if self.scale != 1 else x
    if not self.tied:
      matrix = embedding.table(self, 'unembed', self.rows, self.width, 'unembed', ctx.scheme)
    return x, matrix, embedding.never(self.vocab, self.rows)
