"""A learned vector for each position, and one for the kind of text: x + P[p + offset] + S[0].

P (offset + length, width), S (types, width). BERT has two kinds, the first and the second text of a
pair (Devlin et al., 2018, arXiv:1810.04805, figure 2), with offset 0; RoBERTa has one, and its
first two rows of P belong to padding: offset 2 (Liu et al., 2019, arXiv:1907.11692).

Rows of data hold texts of one kind, so that S[0] is added everywhere; the other vectors of S are
kept for models that have them, and get no gradient. `learned` is the same without S and offset.
"""

import flax.linen as nn

from lmjax import kinds
from lmjax.models.positions import _base
from lmjax.nn import params
from lmjax.parallel import shard
from lmjax.parallel.facts import Fact
from lmjax.registry import LARGEST
from lmjax.registry import register


@register('position', added=True)
class LearnedTypes(_base.Position):
  """x + table[position + offset] + types[0]."""

  length: int
  offset: int = 0
  types: int = 2

  @staticmethod
  def check(offset, types):
    if not 0 <= offset <= LARGEST[int]:
      raise ValueError(f'offset={offset}: from 0 to {LARGEST[int]} rows before the first position')
    if not 1 <= types <= LARGEST[int]:
      raise ValueError(f'types={types}: from 1 to {LARGEST[int]} kinds of text are expected')

  @nn.compact
  def __call__(self, x_BTD, ctx):
    steps, width = x_BTD.shape[1:]
    if steps > self.length:
      raise kinds.Unsupported(
        f'position learned_types: {steps} positions, the table has {self.length}'
      )
    fact = Fact(('position', 'embed'), ('position',), 'position')

    def rows(name, n):
      table = params.param(self, name, (n, width), fact, ctx.scheme)
      return shard.gather(table, fact.names).astype(x_BTD.dtype)

    table, types = rows('table', self.offset + self.length), rows('types', self.types)
    x_BTD = x_BTD + types[0]
    positions_BT = ctx.positions_BT + self.offset
    if shard.is_explicit():
      return x_BTD + table.at[positions_BT].get(out_sharding=shard.spec(('batch', 'time', 'width')))
    return x_BTD + table[positions_BT]
