"""Clipping by the norm of each tensor: every tensor of every layer is shortened by itself.

  update <- update min(1, norm / ||update||),   ||.|| over one tensor of one layer, in float32

The per-tensor form of Pascanu, Mikolov and Bengio, 2012 (arXiv:1211.5063); one loud tensor does not
quiet the others, but the direction of the whole changes. `adagc` finds each tensor's threshold by
itself. Layers and experts stacked in one array are clipped one by one. No state but the metric
`clip_rate`, the share of tensors that were shortened. A norm that is not finite gives NaN, which
the step refuses.
"""

import jax.numpy as jnp

from lmjax.optim import _base, _tensors
from lmjax.registry import register


@register('optim')
def clip_tensor(norm: float = 1.0, *, facts):
  """Clips each tensor's norm, as `facts` stack them; ValueError for a norm that is not above 0."""
  _base.positive('clip_tensor.norm', norm)

  def clip(updates):
    sizes = _tensors.each(_tensors.norm, facts, updates)
    rate = _tensors.share(_tensors.each(lambda _, n: n > norm, facts, sizes))
    shorten = lambda _, u, n: u * (norm / jnp.maximum(n, norm))
    return _tensors.each(shorten, facts, updates, sizes), dict(clip_rate=rate)

  return _base.in_float32(_tensors.measured(clip, 'clip_rate'))
