"""Sampling at a temperature: softmax(z / t), t = 1 being the model's own distribution, t -> 0
greedy, t -> infinity uniform.

Ackley, Hinton and Sejnowski, 1985 (A learning algorithm for Boltzmann machines). The row's maximum
is subtracted before dividing: the distribution is the same, and no t overflows. In a chain the
place matters: `top_p` after `temperature` cuts the tempered distribution.
"""

import dataclasses
import math

import jax.numpy as jnp

from lmjax.decoding import _base
from lmjax.registry import register


@register('decoding')
@dataclasses.dataclass(frozen=True)
class Temperature(_base.Rule):
  """softmax(z / t)."""

  t: float = 1.0

  @staticmethod
  def check(t):
    if not (t > 0 and math.isfinite(t)):
      raise ValueError(f't={t}: a finite temperature above 0 is expected; greedy() is the limit 0')

  def filter(self, logits_BV):
    return (logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True)) / self.t
