"""Clipping each tensor's update by its root mean square.

  update <- update / max(1, RMS(update) / rms)
  RMS(u) = sqrt(mean(u^2)) over one tensor of one layer, in float32

Shazeer and Stern, 2018 (Adafactor, arXiv:1804.04235, section 6), d = 1. Placed behind `adam` it
bounds the step of a tensor whose second moment lags a sudden gradient; Adafactor clips before its
momentum. StableAdamW (Wortsman et al., 2023, arXiv:2304.13013) is another rule: it divides by the
RMS of g / sqrt(v), which is free of momentum, and shortens the decay as well.

Layers and experts stacked in one array are clipped one by one: a stack is no tensor, and the same
model unrolled must train alike. No state but the metric `clip_rate`, the share of tensors that were
shortened. An update whose square leaves float32 becomes 0 here; the step has refused its gradient
by then.
"""

import jax.numpy as jnp
import optax

from lmjax.optim import _base, _tensors
from lmjax.registry import register


@register('optim')
def clip_update(rms: float = 1.0, *, facts) -> optax.GradientTransformationExtraArgs:
  """Clips the RMS of each layer's tensor, as `facts` stack them; ValueError for rms not above 0."""
  _base.positive('clip_update.rms', rms)

  def clip(updates):
    sizes = _tensors.each(_tensors.rms, facts, updates)
    rate = _tensors.share(_tensors.each(lambda _, size: size > rms, facts, sizes))
    shorten = lambda _, u, size: u / jnp.maximum(1.0, size / rms)
    return _tensors.each(shorten, facts, updates, sizes), dict(clip_rate=rate)

  return _base.in_float32(_tensors.measured(clip, 'clip_rate'))
