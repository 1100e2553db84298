"""Compressed rms norm: the norm of a stream of mean 0 that leaves out its last coordinate.

  y = g c / sqrt((sum c_i^2 + (sum c_i)^2) / d + eps),   c = x_1 ... x_{d-1},   x_d = -sum c

Jiang et al., 2023 (arXiv:2305.14858), Pre-CRMSNorm. A model of width D with this norm and `pre`
layers is a pre-norm model of width d = D + 1 with layer norm, without the row and column that are
implied; any D will do, so that one takes D as hardware likes it. The paper's has no gain: gains of
layer norm are folded into the matrices that read it, and so is it here by default. The surgery
`pre_crmsnorm` makes either model from the other. Invariant to the scale of x, not to a shift.
Statistics in float32.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax.nn import params
from lmjax.parallel.facts import Fact
from lmjax.registry import register


@register('norm', scale_invariant=True)
class PreCrmsnorm(nn.Module):
  """y = c / rms(c, -sum c)."""

  eps: float = 1e-5
  scale: bool = False

  @staticmethod
  def check(eps, **_):
    if eps < 0:
      raise ValueError(f'eps={eps}: at least 0 is expected')

  @nn.compact
  def __call__(self, x, ctx):
    x32 = x.astype(jnp.float32)
    squares = jnp.sum(jnp.square(x32), axis=-1, keepdims=True)
    squares += jnp.square(jnp.sum(x32, axis=-1, keepdims=True))
    y = x32 * jax.lax.rsqrt(squares / (x.shape[-1] + 1) + self.eps)
    if self.scale:
      fact = Fact((None,), (), 'norm')
      y = y * params.param(self, 'scale', x.shape[-1:], fact, ctx.scheme)
    return y.astype(x.dtype)
