"""Tokens at least p times as probable as the best one, renormalised: the cut follows the model's
confidence.

  keep v where P(v) >= p * max_u P(u)

Nguyen et al., 2024 (arXiv:2407.01082), who use p = 0.05 to 0.1 and high temperatures. p = 0 keeps
all, p = 1 only the best.
"""

import dataclasses
import math

import jax.numpy as jnp

from lmjax.decoding import _base
from lmjax.registry import register


@register('decoding')
@dataclasses.dataclass(frozen=True)
class MinP(_base.Rule):
  """Logits within -log(p) of the largest."""

  p: float = 0.05

  @staticmethod
  def check(p):
    if not 0 <= p <= 1:
      raise ValueError(f'p={p}: at least 0 and at most 1 is expected')

  def filter(self, logits_BV):
    if self.p == 0:
      return logits_BV
    gap_BV = logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True)
    return _base.keep(logits_BV, gap_BV >= math.log(self.p))
