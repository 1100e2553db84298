"""Only the k most probable tokens, renormalised; among equals those with the smallest ids, so that
never more than k are left.

Fan, Lewis and Dauphin, 2018 (arXiv:1805.04833); k = 40 to 50 is usual since GPT-2. A k beyond the
vocabulary keeps all.
"""

import dataclasses

import jax
import jax.numpy as jnp

from lmjax.decoding import _base
from lmjax.registry import register


@register('decoding')
@dataclasses.dataclass(frozen=True)
class TopK(_base.Rule):
  """The k largest logits."""

  k: int = 50

  @staticmethod
  def check(k):
    if k < 1:
      raise ValueError(f'k={k}: a positive number of tokens is expected')

  def filter(self, logits_BV):
    vocab = logits_BV.shape[-1]
    if self.k >= vocab:
      return logits_BV
    _, best_BK = jax.lax.top_k(logits_BV, self.k)  # the smaller id wins a tie
    flat = best_BK.reshape(-1, self.k)
    rows = jnp.arange(flat.shape[0])[:, None]
    mask = jnp.zeros((flat.shape[0], vocab), bool).at[rows, flat].set(True)
    return _base.keep(logits_BV, mask.reshape(logits_BV.shape))
