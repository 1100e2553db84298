"""A table narrower than the model, and a matrix that leads from it to the model's width.

  x = e P,  e = norm(E[token] * scale + position)        logits = h (E P)^T

E (vocab, size), P (size, width), size < width: size (vocab + width) parameters instead of vocab x
width. Lan et al., 2019 (ALBERT, arXiv:1909.11942), section 3.1, size 128; ELECTRA-Small has the
same (Clark et al., 2020, arXiv:2003.10555).

Both have learned positions and a layer norm in front of P, in `size` dimensions:
factorized(position=learned(), norm=layer_norm()), with a `model.position` that adds nothing and no
`model.embed_norm`; those act behind P, in the model's width. `model.dropout` acts behind P too, in
front of it in ALBERT.

Output and input share E and P. ALBERT's output leads back to `size` by a layer of its own, which
is part of a head there; here the logits are those of tied() with the table E P, of rank `size`. E P
is multiplied out in every pass, which costs vocab x size x width multiply-adds a pass (not counted
with the FLOPs of a token) and its room, so that logits cost what a full table's do: parameters and
optimizer states are saved, not work. P has no bias.

P starts from N(0, 1/size), whatever `model.init` says, so that E P begins with the size of values
of the full table; its role is `embed`, as E's: under muP it keeps its rate, since `size` stays as
the width grows. `multiple_of` rounds the table up; the added rows are never predicted.
"""

from typing import Annotated

import flax.linen as nn
import jax

from lmjax.models.embeds import _table
from lmjax.nn import embedding
from lmjax.nn import params
from lmjax.parallel import shard
from lmjax.parallel.facts import Fact
from lmjax.registry import Part, register


@register('embed', tied=True, size=lambda args: args['size'])
class Factorized(_table.Table):
  """e P, and E P for the logits."""

  size: int = 128
  position: Annotated[Part | None, 'position'] = None
  norm: Annotated[Part | None, 'norm'] = None

  @staticmethod
  def check(size, position, norm, **others):
    del norm
    _table.Table.check(**others)
    if size < 1:
      raise ValueError(f'size={size}: a positive number is expected')
    if position is not None and not position.fact('added'):
      raise ValueError(
        f'position={position}: one that is added to vectors is expected, such as learned(); others '
        'are config.model.position'
      )

  @nn.compact
  def __call__(self, tokens_BT, ctx, whole: bool = True):
    """As `kinds.Embed` says; not `whole`: (e, E, bias), without P."""
    if self.size >= self.width:
      raise ValueError(
        f'embed factorized: size={self.size} is not below config.model.width={self.width}; a '
        'smaller one, or tied() for a table of the full width, is expected'
      )
    # Logits are made from E P, so that a token meets `width` values of a row.
    fact = Fact(('vocab', 'embed'), ('vocab',), 'embed', self.width / self.size)
    table = params.param(self, 'table', (self.rows, self.size), fact, ctx.scheme)
    table, bias = shard.gather(table, fact.names), embedding.never(self.vocab, self.rows)
    x = embedding.look_up(table, tokens_BT, self.dtype)
    x = x * self.scale if self.scale != 1 else x
    if self.position is not None:
      x = self.position(name='position')(x, ctx)
    if self.norm is not None:
      x = self.norm(name='norm')(x, ctx)
    if not whole:
      return x, table, bias
    fact, start = Fact(('rank', 'embed'), ('rank',), 'embed'), self.size**-0.5
    start = jax.nn.initializers.normal(start)
    leads = params.param(self, 'project', (self.size, self.width), fact, ctx.scheme, start)
    leads = shard.gather(leads, fact.names).astype(self.dtype)
    unembed = shard.gather(table.astype(self.dtype) @ leads, ('vocab', 'embed'))
    return params.contract(x, leads, 1, ('width',)), unembed, bias
