"""Nucleus sampling: the smallest set of most probable tokens whose mass reaches p, the token that
crosses p included; renormalised.

Holtzman et al., 2020 (arXiv:1904.09751), who use p = 0.9 to 0.95. Among equals the smaller id comes
first. p = 1 keeps all.
"""

import dataclasses

import jax

from lmjax.decoding import _base
from lmjax.registry import register


@register('decoding')
@dataclasses.dataclass(frozen=True)
class TopP(_base.Rule):
  """Tokens whose better ones together weigh less than p."""

  p: float = 0.9

  @staticmethod
  def check(p):
    if not 0 < p <= 1:
      raise ValueError(f'p={p}: above 0 and at most 1 is expected')

  def filter(self, logits_BV):
    if self.p == 1:
      return logits_BV
    # The best token has nothing before it, hence stays.
    likely_BV = jax.nn.softmax(logits_BV, axis=-1)
    return _base.keep(logits_BV, _base.leading(logits_BV, likely_BV, self.p))
