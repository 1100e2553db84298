"""Sampling at a temperature: softmax(z / t), t = 1 being the model's own distribution, t -> 0
greedy, t -> infinity uniform.

Ackley, Hinton and Sejnowski, 1985 (A learning algorithm for Boltzmann machines). In a chain the
place matters: `top_p` after `temperature` cuts the tempered distribution.
"""

import dataclasses

from lmjax.decoding import _base
from lmjax.registry import register


@register('decoding')
@dataclasses.dataclass(frozen=True)
class Temperature(_base.Rule):
  """softmax(z / t)."""

  t: float = 1.0

  @staticmethod
  def check(t):
    if t == 0:
      raise ValueError('t=0: a temperature above 0 is expected; greedy() is the limit 0')
    _base.check_temperature('t', t)

  def filter(self, logits_BV):
    return _base.tempered(logits_BV, self.t)
