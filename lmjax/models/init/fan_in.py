"""Normal(0, sqrt(gain / fan_in)) for matrices inside layers and the unembedding; `embed` for tables
of vectors.

LeCun et al., 1998 (gain 1), He et al., 2015 (arXiv:1502.01852; gain 2). Residual writers are
divided by sqrt(2 N) where `scale_residual`.
"""

import dataclasses
import math

from lmjax.models.init import _base
from lmjax.registry import register


@register('init')
@dataclasses.dataclass(frozen=True)
class FanIn(_base.Init):
  """sqrt(gain / fan_in)."""

  gain: float = 1.0
  embed: float = 0.02
  scale_residual: bool = True

  @staticmethod
  def check(gain, embed, **_):
    _base.positive(gain=gain, embed=embed)

  def std(self, fact, shape):
    if fact.role in ('embed', 'position'):
      return self.embed
    fan_in, _ = fact.fans(shape)
    std = math.sqrt(self.gain / fan_in)
    return (
      std / math.sqrt(2 * self.depth) if fact.role == 'residual' and self.scale_residual else std
    )
