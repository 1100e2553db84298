"""Pre-RMSNorm: a pre-norm layer whose stream has mean 0; rms norm then does what layer norm does.

  enter: x <- P x,   layer: x <- x + P f(rms_norm(x)),   P y = y - mean(y)

Jiang et al., 2023 (arXiv:2305.14858). Layers read the stream through norms alone, and layer norm
discards its mean; with P at every writer the mean is 0 and layer norm equals rms norm of the same
eps and gain. Use it with `rms_norm` as the layers' and the final norm. P is part of the forward
pass: centring the weights once would not last, since decay and biases bring the mean back. The
surgery `pre_crmsnorm` begins such a run from one of layer norm and leads back; for inference it
folds P into the writers (layers `pre` with rms norm), or leaves the last coordinate out
(`pre_crmsnorm` as the norm).
"""

import flax.linen as nn
import jax.numpy as jnp

from lmjax.models.residuals import _wiring
from lmjax.nn.dropout import dropout
from lmjax.registry import register


def centred(x):
  """x - mean(x) over the last axis, the mean in float32."""
  x32 = x.astype(jnp.float32)
  return (x32 - jnp.mean(x32, axis=-1, keepdims=True)).astype(x.dtype)


@register('residual', stream='centred')
class PreRmsnorm(_wiring.Layer):
  """x + P f(norm(x)), twice."""

  dropout: float = 0.0

  @nn.nowrap
  def enter(self, x_BTD):
    return centred(x_BTD)

  @nn.compact
  def __call__(self, x, ctx, cache=None):
    drop = lambda y: centred(dropout(self, y, self.dropout, ctx))
    y, cache, mixed = self.mix(self.norm(name='norm_mixer')(x, ctx), ctx, cache)
    x = _wiring.place(x + drop(y))
    y, fed = self.feed(self.norm(name='norm_ffn')(x, ctx), ctx)
    return _wiring.place(x + drop(y)), cache, _wiring.join(mixed, fed)
