"""Clipping by the global norm: all tensors together are shortened to a norm, their direction kept.

  update <- update min(1, norm / ||update||),   ||.|| over all tensors jointly, in float32

Pascanu, Mikolov and Bengio, 2012 (arXiv:1211.5063). In front of a chain it clips the gradient,
elsewhere what reaches it. 1.0 is GPT-3's value. Under a mesh the norm is that of the whole arrays,
not of a shard. A norm that is not finite is left to the step, which refuses it. No state but the
metric `clip_rate`, 1 where the step was clipped and else 0.
"""

import jax.numpy as jnp
import optax

from lmjax.optim import _base, _tensors
from lmjax.registry import register


@register('optim')
def clip(norm: float = 1.0) -> optax.GradientTransformationExtraArgs:
  """Clips the global norm; ValueError for a norm that is not above 0."""
  _base.positive('clip.norm', norm)
  inner = optax.clip_by_global_norm(norm)

  def cut(updates):
    rate = (optax.tree.norm(updates) > norm).astype(jnp.float32)
    return inner.update(updates, inner.init(updates))[0], dict(clip_rate=rate)

  return _base.in_float32(_tensors.measured(cut, 'clip_rate'))
