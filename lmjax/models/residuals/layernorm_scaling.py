"""LayerNorm scaling: pre-norm layers whose norms are divided by the root of the layer's number.

  h = norm(x) / sqrt(l),   x <- x + f(h),   l = 1 ... depth, at both norms of layer l

Sun et al., 2025 (arXiv:2502.05795): in pre-norm stacks the variance of the stream grows with depth
until deep layers hardly change it; here what a layer adds shrinks as 1/l. The factor is a constant,
without parameters, behind the gain; the final norm is not scaled. Its authors found that smaller
initial values of residual writers, 1/sqrt(2 depth), cancel the benefit: use
`model.init='fan_in(scale_residual=False)'` or another without them.
"""

import flax.linen as nn
import jax.numpy as jnp

from lmjax.models.residuals import _wiring
from lmjax.nn.dropout import dropout
from lmjax.registry import register


@register('residual')
class LayernormScaling(_wiring.Layer):
  """x + f(norm(x) / sqrt(l)), twice."""

  dropout: float = 0.0

  @nn.compact
  def __call__(self, x, ctx, cache=None):
    drop = lambda y: dropout(self, y, self.dropout, ctx)
    root = jnp.sqrt(jnp.asarray(ctx.depth + 1, jnp.float32))  # depth counts from 0
    scaled = lambda y: (y.astype(jnp.float32) / root).astype(y.dtype)
    y, cache, mixed = self.mix(scaled(self.norm(name='norm_mixer')(x, ctx)), ctx, cache)
    x = _wiring.place(x + drop(y))
    y, fed = self.feed(scaled(self.norm(name='norm_ffn')(x, ctx)), ctx)
    return _wiring.place(x + drop(y)), cache, _wiring.join(mixed, fed)
