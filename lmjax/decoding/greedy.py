"""The most probable token; among equals the one with the smallest id. The limit t -> 0 of
`temperature`.
"""

import jax.numpy as jnp

from lmjax.decoding import _base
from lmjax.registry import register


@register('decoding')
class Greedy(_base.Rule):
  """argmax of the logits."""

  def filter(self, logits_BV):
    ids_V = jnp.arange(logits_BV.shape[-1])
    return _base.keep(logits_BV, ids_V == jnp.argmax(logits_BV, axis=-1)[..., None])
