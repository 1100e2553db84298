"""Clipping by value: each entry of the gradient is cut to [-bound, bound].

  update <- min(max(update, -bound), bound)

The oldest of the clippings (Mikolov, 2012, PhD thesis, Brno); it turns the gradient, where clipping
a norm keeps its direction. Behind `adam` it is the ablation of Sophia, `adam() | clip_value()`:
Adam whose coordinates move by at most the learning rate. No state but the metric `clip_rate`, the
share of entries that were cut. NaN stays; an infinite entry becomes the bound, but the step has
refused its gradient by then.
"""

import jax
import jax.numpy as jnp

from lmjax.optim import _base, _tensors
from lmjax.registry import register


@register('optim')
def clip_value(bound: float = 1.0):
  """Cuts each entry; ValueError for a bound that is not above 0."""
  _base.positive('clip_value.bound', bound)

  def cut(updates):
    rate = _tensors.share(jax.tree.map(lambda u: jnp.abs(u) > bound, updates))
    return jax.tree.map(lambda u: jnp.clip(u, -bound, bound), updates), dict(clip_rate=rate)

  return _base.in_float32(_tensors.measured(cut, 'clip_rate'))
