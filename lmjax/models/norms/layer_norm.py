"""Layer norm: y = g (x - mean(x)) / sqrt(var(x) + eps) + b, over the last axis.

Ba, Kiros and Hinton, 2016 (arXiv:1607.06450). Invariant to the scale and to a shift of x (up to
eps). Statistics in float32.
eps = 1e-5 is PyTorch's and GPT-2's default.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax.nn import params
from lmjax.parallel.facts import Fact
from lmjax.registry import register


@functools.partial(
  jax.checkpoint, static_argnums=3
)  # keeps x alone for the backward pass, not also x centred and scaled
def layer_norm(x, scale, bias, eps: float):
  x32 = x.astype(jnp.float32)
  centered = x32 - jnp.mean(x32, axis=-1, keepdims=True)
  y = centered * jax.lax.rsqrt(jnp.mean(jnp.square(centered), axis=-1, keepdims=True) + eps)
  if scale is not None:
    y = y * scale
  if bias is not None:
    y = y + bias
  return y.astype(x.dtype)


@register('norm', scale_invariant=True, shift_invariant=True)
class LayerNorm(nn.Module):
  """y = g (x - mean) / std + b."""

  eps: float = 1e-5
  scale: bool = True
  bias: bool = True

  @staticmethod
  def check(eps, **_):
    if eps < 0:
      raise ValueError(f'eps={eps}: at least 0 is expected')

  @nn.compact
  def __call__(self, x, ctx):
    shape = x.shape[-1:]
    g = (
      params.param(self, 'scale', shape, Fact((None,), (), 'norm'), ctx.scheme)
      if self.scale
      else None
    )
    b = (
      params.param(self, 'bias', shape, Fact((None,), (), 'bias'), ctx.scheme)
      if self.bias
      else None
    )
    return layer_norm(x, g, b, self.eps)
