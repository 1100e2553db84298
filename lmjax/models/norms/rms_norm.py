"""Root-mean-square norm: y = g x / sqrt(mean(x^2) + eps), over the last axis.

Zhang and Sennrich, 2019 (arXiv:1910.07467). Invariant to the scale of x (up to eps), not to a
shift. Statistics are taken in float32 and the result is returned in the dtype of x.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax.nn import params
from lmjax.parallel.facts import Fact
from lmjax.registry import register


@functools.partial(
  jax.checkpoint, static_argnums=2
)  # keeps x alone for the backward pass, not also x / rms(x)
def rms_norm(x, scale, eps: float):
  x32 = x.astype(jnp.float32)
  y = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
  return (y if scale is None else y * scale).astype(x.dtype)


@register('norm', scale_invariant=True)
class RmsNorm(nn.Module):
  """y = g x / rms(x)."""

  eps: float = 1e-6
  scale: bool = True

  @staticmethod
  def check(eps, **_):
    if eps < 0:
      raise ValueError(f'eps={eps}: at least 0 is expected')

  @nn.compact
  def __call__(self, x, ctx):
    g = (
      params.param(self, 'scale', x.shape[-1:], Fact((None,), (), 'norm'), ctx.scheme)
      if self.scale
      else None
    )
    return rms_norm(x, g, self.eps)
