"""Disturbed gradients, to compare how optimizers bear them; no method of training.

  at updates t = start, start + every, ... (t = 0, 1, ...):   g <- times g

By default the gradient is a hundred times as long and points uphill, once; `every=0` means no more
than once. Spikes of up to a thousand times the usual gradient are seen in pretraining (Huang et
al., 2025, arXiv:2501.06842). Put it in front of everything: `disturb(start=200, every=100) | clip()
| adam()`. Deterministic, and alike for stacked and single layers. No state but a count.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from lmjax.optim import _base
from lmjax.registry import register


class State(NamedTuple):
  """count: updates made."""

  count: jax.Array


@register('optim')
def disturb(
  start: int = 100, every: int = 0, times: float = -100.0
) -> optax.GradientTransformationExtraArgs:
  """Multiplies some gradients; ValueError for a negative start or every, times not finite."""
  _base.require(start >= 0, 'disturb.start', start, 'a number of updates of at least 0')
  _base.require(every >= 0, 'disturb.every', every, 'a number of updates of at least 0')
  _base.require(math.isfinite(times), 'disturb.times', times, 'a finite number')

  def init(params):
    return State(jnp.zeros((), jnp.int32))

  def update(updates, state, params=None, **extra):
    t = state.count - start
    due = (t >= 0) & (t % every == 0) if every else t == 0
    factor = jnp.where(due, times, 1.0)
    updates = jax.tree.map(lambda u: u * factor, updates)
    return updates, State(optax.safe_increment(state.count))

  return _base.in_float32(optax.GradientTransformationExtraArgs(init, update))
