"""A part that lives outside lmjax and keeps a variable that is not trained: x minus a running mean
of all x seen in training.
"""

import flax.linen as nn
import jax.numpy as jnp


class RunningNorm(nn.Module):
  """y = (x - mean) * scale, mean <- momentum mean + (1 - momentum) mean(x)."""

  momentum: float = 0.5
  scale: float = 1.0

  @nn.compact
  def __call__(self, x, ctx):
    mean = self.variable('vars', 'mean', jnp.zeros, x.shape[-1:], jnp.float32)
    if ctx.train:
      seen = jnp.mean(x.astype(jnp.float32), axis=tuple(range(x.ndim - 1)))
      mean.value = self.momentum * mean.value + (1 - self.momentum) * seen
    return (x - mean.value.astype(x.dtype)) * self.scale
