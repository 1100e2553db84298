"""AdaGC: clipping of each tensor by a running mean of its own clipped norms.

  t < start:   g_i <- g_i min(1, absolute / ||g||),   ||g|| over all tensors
               gamma_i <- min(gamma_i, ||g_i||)
  later:       g_i <- g_i min(1, relative gamma_i / ||g_i||)
               gamma_i <- beta gamma_i + (1 - beta) ||g_i||          (the clipped norm)

Wang et al., 2025 (arXiv:2502.11034), with its values. Put it in front: `adagc() | adam() |
decay(rate=0.1)`; do not clip globally beside it. The minimum during the warm-up is deliberate:
thresholds start at the quiet end. Under lasting clipping gamma grows by at most beta + (1 - beta)
relative = 1.001 a step, so that a spike cannot raise its own threshold, while it falls quickly.

A tensor is one of one layer: stacked layers and experts have thresholds of their own. A tensor
without any gradient in a step (an expert without tokens) keeps its threshold, which the paper does
not say; otherwise one such step in the warm-up would hold it at 0 for ever. A tensor seen for the
first time after the warm-up starts with its own norm.

State: one float32 number a tensor and a count. Metric: `clip_rate`, the share of tensors that were
shortened. A norm that is not finite makes the threshold NaN; the step, whose own norm is then not
finite either, refuses it and the state stays. Trap: a tiny first gradient (1e-9, say) holds the
tensor at that size for hundreds of steps, as published.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lmjax.optim import _base, _tensors
from lmjax.registry import register


class State(NamedTuple):
  count: jax.Array
  gamma: Any
  metrics: dict[str, jax.Array]


@register('optim')
def adagc(
  relative: float = 1.05,
  absolute: float = 1.0,
  beta: float = 0.98,
  start: int = 100,
  *,
  facts,
) -> optax.GradientTransformationExtraArgs:
  """Clips each tensor; ValueError for relative below 1, absolute not above 0, beta outside [0, 1),
  a negative start.
  """
  _base.require(
    1 <= relative < math.inf, 'adagc.relative', relative, 'a finite number of at least 1'
  )
  _base.positive('adagc.absolute', absolute)
  _base.decay_rate('adagc.beta', beta)
  _base.require(start >= 0, 'adagc.start', start, 'a number of steps of at least 0')

  def init(params):
    gamma = _tensors.per_tensor(facts, params, math.inf)
    return State(jnp.zeros((), jnp.int32), gamma, dict(clip_rate=jnp.zeros(())))

  def update(updates, state, params=None, **extra):
    count = optax.safe_increment(state.count)
    warm = count < start
    total = optax.tree.norm(updates)
    norms = _tensors.each(_tensors.norm, facts, updates)

    def factor(_, n, gamma):
      own = jnp.where(n > relative * gamma, relative * gamma / jnp.where(n > 0, n, 1.0), 1.0)
      return jnp.where(warm, absolute / jnp.maximum(total, absolute), own)

    def next_gamma(_, n, gamma, f):
      mean = jnp.where(jnp.isinf(gamma), n * f, beta * gamma + (1 - beta) * n * f)
      return jnp.where(n > 0, jnp.where(warm, jnp.minimum(gamma, n * f), mean), gamma)

    factors = _tensors.each(factor, facts, norms, state.gamma)
    gamma = _tensors.each(next_gamma, facts, norms, state.gamma, factors)
    rate = _tensors.share(jax.tree.map(lambda f: f < 1, factors))
    out = _tensors.each(lambda _, u, f: u * f, facts, updates, factors)
    return out, State(count, gamma, dict(clip_rate=rate))

  return _base.in_float32(optax.GradientTransformationExtraArgs(init, update))
