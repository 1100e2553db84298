"""StableAdamW: Adam whose step shrinks where the gradient outruns the second moment.

  m, v as in Adam, without bias from the start:  d_i = b_i (1 - b_i^(t-1)) / (1 - b_i^t)
  m <- d_1 m + (1 - d_1) g      v <- d_2 v + (1 - d_2) g^2      t = 1, 2, ...
  r = sqrt(mean(g^2 / max(v, eps^2)))     over one tensor of one layer
  update = m / (sqrt(v) + eps) / max(1, r)

Wortsman et al., 2023 (arXiv:2304.13013, algorithm 2), with its b2 = 0.99 and eps = 1e-6. r uses the
new v, so that it is 1 at the first step, and the gradient itself, not the momentum; `adam() |
clip_update()` instead clips by the RMS of what Adam gives. Meant to replace gradient clipping.

The paper shortens the decoupled decay by the same r. Decay is a part of its own here:
`stable_adamw() | decay(rate=0.1)` shrinks by lr x rate also in the steps where r is above 1.

State: m and v in float32, 8 bytes a parameter, and a count. Metric: `clip_rate`, the share of
tensors with r > 1; r wavers about 1 also in calm training.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lmjax.optim import _base, _tensors
from lmjax.registry import register


class State(NamedTuple):
  count: jax.Array
  m: Any
  v: Any
  metrics: dict[str, jax.Array]


@register('optim')
def stable_adamw(
  b1: float = 0.9, b2: float = 0.99, eps: float = 1e-6, *, facts
) -> optax.GradientTransformationExtraArgs:
  """StableAdamW's direction; ValueError for b1, b2 outside [0, 1), eps not above 0."""
  _base.decay_rate('stable_adamw.b1', b1)
  _base.decay_rate('stable_adamw.b2', b2)
  _base.positive('stable_adamw.eps', eps)

  def init(params):
    m, v = _tensors.zeros(params), _tensors.zeros(params)
    return State(jnp.zeros((), jnp.int32), m, v, dict(clip_rate=jnp.zeros(())))

  def update(updates, state, params=None, **extra):
    count = optax.safe_increment(state.count)
    m = _tensors.mix(_tensors.unbiased(b1, count), state.m, updates)
    squares = jax.tree.map(jnp.square, updates)
    v = _tensors.mix(_tensors.unbiased(b2, count), state.v, squares)

    def outrun(fact, g, v):
      return _tensors.rms(fact, g / jnp.sqrt(jnp.maximum(v, eps * eps)))

    r = _tensors.each(outrun, facts, updates, v)
    rate = _tensors.share(jax.tree.map(lambda r: r > 1, r))
    step = lambda _, m, v, r: m / (jnp.sqrt(v) + eps) / jnp.maximum(r, 1.0)
    return _tensors.each(step, facts, m, v, r), State(count, m, v, dict(clip_rate=rate))

  return _base.in_float32(optax.GradientTransformationExtraArgs(init, update))
