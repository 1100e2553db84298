"""A learned vector for each position, added to the token embedding. Table: (length, width).

Gehring et al., 2017 (arXiv:1705.03122), section 3.1; GPT-2, BERT.

Positions beyond the table cannot be honoured: a longer row than `config.data.length` is refused
when the model is built.
"""

import flax.linen as nn

from lmjax import kinds
from lmjax.models.positions import _base
from lmjax.nn import params
from lmjax.parallel import shard
from lmjax.parallel.facts import Fact
from lmjax.registry import register


@register('position', added=True)
class Learned(_base.Position):
  """x + table[position]."""

  length: int

  @nn.compact
  def __call__(self, x_BTD, ctx):
    steps = x_BTD.shape[1]
    if steps > self.length:
      raise kinds.Unsupported(f'position learned: {steps} positions, the table has {self.length}')
    fact = Fact(('position', 'embed'), ('position',), 'position')
    table = params.param(self, 'table', (self.length, x_BTD.shape[-1]), fact, ctx.scheme)
    table = shard.gather(table, fact.names).astype(x_BTD.dtype)
    if shard.is_explicit():
      return x_BTD + table.at[ctx.positions_BT].get(
        out_sharding=shard.spec(('batch', 'time', 'width'))
      )
    return x_BTD + table[ctx.positions_BT]
