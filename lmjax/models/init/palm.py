"""PaLM: Normal(0, 1/sqrt(fan_in)) for matrices, Normal(0, 1) for tables, logits / sqrt(width).

  logits = h E^T / sqrt(width),  E ~ N(0, 1)

Chowdhery et al., 2022 (arXiv:2204.02311), section 5: tables are not normed, so that E starts with
the standard deviation 1; the same table makes the logits, which are therefore scaled. No factor for
depth, and learning rates as they are.
"""

import dataclasses
import math

from lmjax.models.init import _base
from lmjax.registry import register


@register('init')
@dataclasses.dataclass(frozen=True)
class Palm(_base.Init):
  """1/sqrt(fan_in), tables 1, logits over sqrt(width)."""

  def std(self, fact, shape):
    return 1.0 if fact.role in ('embed', 'position') else 1 / math.sqrt(fact.fans(shape)[0])

  def logit_scale(self):
    return 1 / math.sqrt(self.width)
