"""What root-mean-square norms share: y = g x / sqrt(mean(x^2) + eps), the mean and g over the axes
from `first` on.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax.nn import params
from lmjax.parallel.facts import Fact


@functools.partial(jax.checkpoint, static_argnums=(2, 3))  # keeps x alone, not also x / rms(x)
def normed(x, scale, eps: float, first: int):
  """Statistics in float32, the result in the dtype of x."""
  x32, axes = x.astype(jnp.float32), tuple(range(x.ndim))[first:]
  y = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=axes, keepdims=True) + eps)
  return (y if scale is None else y * scale).astype(x.dtype)


class Rms(nn.Module):
  """The fields of both norms."""

  eps: float = 1e-6
  scale: bool = True

  @staticmethod
  def check(eps, **_):
    if eps < 0:
      raise ValueError(f'eps={eps}: at least 0 is expected')

  def over(self, x, ctx, first: int):
    """x normed, with a gain where the part has one."""
    shape = x.shape[first:]
    fact = Fact((None,) * len(shape), (), 'norm')
    g = params.param(self, 'scale', shape, fact, ctx.scheme) if self.scale else None
    return normed(x, g, self.eps, first)
