"""Nucleus sampling: the smallest set of most probable tokens whose mass reaches p, the token that
crosses p included; renormalised.

Holtzman et al., 2020 (arXiv:1904.09751), who use p = 0.9 to 0.95. Among equals the smaller id comes
first. p = 1 keeps all.
"""

import dataclasses

import jax
import jax.numpy as jnp

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
    order_BV = jnp.argsort(-logits_BV, axis=-1, stable=True)
    sorted_BV = jax.nn.softmax(jnp.take_along_axis(logits_BV, order_BV, axis=-1), axis=-1)
    before_BV = jnp.concatenate(
      [jnp.zeros_like(sorted_BV[..., :1]), jnp.cumsum(sorted_BV[..., :-1], axis=-1)], axis=-1
    )
    kept_BV = before_BV < self.p  # the best token has nothing before it, hence stays
    back_BV = jnp.argsort(order_BV, axis=-1)
    return _base.keep(logits_BV, jnp.take_along_axis(kept_BV, back_BV, axis=-1))
