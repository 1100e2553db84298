"""A linear penalty on distance: logits(t, s) += -m_h |t - s|, with m_h = 2^(-8h/H) for h = 1 ... H.

Press, Smith and Lewis, 2021 (arXiv:2108.12409). For H not a power of two the slopes of the next
lower power are used, then every other one of the next higher, as in the paper's code.
"""

import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from lmjax.models.positions import _base
from lmjax.registry import register


def slopes(heads: int) -> np.ndarray:
  """m_h, float64 (heads,)."""

  def of(n):
    return 2.0 ** (-8.0 * np.arange(1, n + 1) / n)

  power = 2 ** int(math.log2(heads))
  if power == heads:
    return of(heads)
  return np.concatenate([of(power), of(2 * power)[0::2][: heads - power]])


@register('position', relative=True)
class Alibi(_base.Position):
  """A bias on the attention logits."""

  @nn.nowrap
  def bias(self, heads, positions_BT, positions_BS):
    gap_BTS = jnp.abs(positions_BT[:, :, None] - positions_BS[:, None, :]).astype(jnp.float32)
    return -jnp.asarray(slopes(heads), jnp.float32)[None, :, None, None] * gap_BTS[:, None]
