"""Pre-norm layer of a decoder that reads an encoder's output.

  x <- x + mixer(norm(x));  x <- x + cross(norm(x), memory);  x <- x + ffn(norm(x))

`cross` is a mixer with the fact of that name. Vaswani et al., 2017 (arXiv:1706.03762, section 3.1),
with the norms of T5 (Raffel et al., 2020, arXiv:1910.10683, section 2.1).
"""

from typing import Annotated

import flax.linen as nn

from lmjax.models.residuals import _wiring
from lmjax.nn.dropout import dropout
from lmjax.registry import Part, register


@register('residual')
class PreCross(_wiring.Layer):
  """x + f(norm(x)), three times."""

  cross: Annotated[Part, 'mixer'] = 'cross_attention()'
  dropout: float = 0.0

  @staticmethod
  def check(cross, dropout):
    _wiring.Layer.check(dropout)
    if not cross.fact('cross'):
      raise ValueError(
        f'cross={cross}: a mixer that reads the memory of an encoder is expected, such as '
        'cross_attention()'
      )

  @nn.nowrap
  def init_cache(self, kind, batch, length, width, dtype, memory):
    own = super().init_cache(kind, batch, length, width, dtype, memory)
    return own, self.cross(parent=None).init_cache(kind, batch, memory, width, dtype)

  @nn.nowrap
  def mixing_flops(self, width, length, memory):
    own = super().mixing_flops(width, length, memory)
    cross = self.cross(parent=None)
    # Matrices count by the tokens of the text; those of keys and values see the memory instead.
    more = cross.memory_flops(width) * (memory / length - 1)
    crossed = cross.mixing_flops(width, memory)
    return own[0] + crossed[0] + more, own[1] + crossed[1] + more

  @nn.compact
  def __call__(self, x, ctx, cache=None):
    drop = lambda y: dropout(self, y, self.dropout, ctx)
    own, kept = (None, None) if cache is None else cache
    y, own, mixed = self.mix(self.norm(name='norm_mixer')(x, ctx), ctx.replace(memory=None), own)
    x = _wiring.place(x + drop(y))
    y, kept, crossed = self.cross(name='cross')(self.norm(name='norm_cross')(x, ctx), ctx, kept)
    x = _wiring.place(x + drop(y))
    y, fed = self.feed(self.norm(name='norm_ffn')(x, ctx), ctx)
    aux = _wiring.join(mixed, {f'cross/{k}': v for k, v in crossed.items()}, fed)
    return _wiring.place(x + drop(y)), None if cache is None else (own, kept), aux
