"""T5: attention without a factor, whose share is in the queries' first values instead.

  std: queries 1/sqrt(width head_dim), other matrices 1/sqrt(fan-in), tables of words 1, of
       positions 1/sqrt(width)
  logits = h E^T / sqrt(width), with `scale_logits`

Raffel et al., 2020 (arXiv:1910.10683); the values are in the code, not in the paper. Logits are
scaled where E is the table that embeds; T5 1.1 has a matrix of its own for them, of fan-in like all
others, and `scale_logits=False`.
"""

import dataclasses
import math

from lmjax.models.init import _base
from lmjax.registry import register


@register('init')
@dataclasses.dataclass(frozen=True)
class T5(_base.Init):
  """1/sqrt(fan_in), queries divided by sqrt(head_dim) too; tables of words 1."""

  scale_logits: bool = True

  def std(self, fact, shape):
    if fact.role == 'embed':
      return 1.0
    if fact.role == 'position':
      return 1 / math.sqrt(self.width)
    std = 1 / math.sqrt(fact.fans(shape)[0])
    if 'heads' in fact.names and 'heads' not in fact.inputs and 'head_dim' in fact.names:
      return std / math.sqrt(shape[fact.names.index('head_dim')])
    return std

  def logit_scale(self):
    return 1 / math.sqrt(self.width) if self.scale_logits else 1.0

  def attention_scale(self, head_dim):
    return 1.0
