"""A causal convolution of each channel: y_t = sum_i w_i x_{t-i}, i = 0 ... taps - 1.

Tokens of other documents and padding count as 0. Initial values: uniform in +-1/sqrt(taps), as
PyTorch's Conv1d has it; a filter is no matrix, so the init part is not asked.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax.nn import params
from lmjax.parallel.facts import Fact


def _uniform(key, shape, dtype):
  bound = shape[0] ** -0.5
  return jax.random.uniform(key, shape, dtype, -bound, bound)


class ShortConv(nn.Module):
  """taps: at least 1. names: of the channels' axes."""

  taps: int
  names: tuple[str | None, ...]

  @nn.compact
  def __call__(self, x, segments_BS, ctx, before):
    """y (B, T, channels...) for x of that shape.

    segments_BS: of the taps - 1 tokens before the first and of the T tokens. before: (B, taps - 1,
    channels...), those tokens' x.
    """
    steps, channels = x.shape[1], x.shape[2:]
    fact = Fact((None, *self.names), (), 'other')
    w = params.param(self, 'kernel', (self.taps, *channels), fact, ctx.scheme, init=_uniform)
    x = jnp.concatenate([before.astype(x.dtype), x], axis=1)
    now = segments_BS[:, self.taps - 1 :]
    y = 0.0
    for lag in range(self.taps):
      at = slice(self.taps - 1 - lag, self.taps - 1 - lag + steps)
      same = (segments_BS[:, at] == now).reshape(*now.shape, *(1,) * len(channels))
      y += jnp.where(same, x[:, at], 0) * w[lag].astype(x.dtype)
    return y
