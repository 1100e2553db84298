"""Stable-SPAM: Adam on gradients cut at a running peak and brought to a running norm, with resets.

For each tensor of each layer, all running means without bias from the start, t = 1, 2, ...:

  peak:   M <- mean of max|g| by gamma3;   where |g| > M:  g <- g M / max|g|
  norm:   mu <- mean of ||g|| by gamma1,   nu <- mean of ||g||^2 by gamma2
          g <- g / ||g|| . mu / (sqrt(nu) + eps)
  Adam:   m, v by b1, b2 with bias correction;   update = m / (sqrt(v) + eps)
  resets: where t is a multiple of `every`, m and v begin anew with this step's g

Huang et al., 2025 (arXiv:2502.17055), with the values of its code (gamma1 = 0.7, gamma2 = 0.9,
gamma3 = 0.999, every 1000 steps; b2 = 0.999). After the second line the norm of every tensor's
gradient is at most about 1, and exactly 1 at t = 1, so that `clip` has nothing to do. A reset
begins the bias correction anew as well; `every=0` never resets. Decay is a part of its own and not
touched by resets: `stable_spam() | decay(rate=...)`.

Differences from the public code, on purpose: there a reset also restarts the count that corrects M,
mu and nu although these are kept (so that nothing is cut for a while), and its own step still uses
the old m and v under the new correction. The cosine that lowers b1 and gamma1 over training is left
out; the code has it off by default. Its scripts give gamma1 = 0.85 and gamma2 = 0.99999 in
bfloat16.

State: m and v in float32, 8 bytes a parameter, three numbers a tensor and a count. Metric:
`clip_rate`, the share of entries that were cut.
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
  peak: Any
  mu: Any
  nu: Any
  metrics: dict[str, jax.Array]


@register('optim')
def stable_spam(
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  gamma1: float = 0.7,
  gamma2: float = 0.9,
  gamma3: float = 0.999,
  every: int = 1000,
  *,
  facts,
) -> optax.GradientTransformationExtraArgs:
  """Stable-SPAM's direction; ValueError for b1, b2 or a gamma outside [0, 1), eps not above 0, a
  negative `every`.
  """
  means = dict(b1=b1, b2=b2, gamma1=gamma1, gamma2=gamma2, gamma3=gamma3)
  for key, value in means.items():
    _base.decay_rate(f'stable_spam.{key}', value)
  _base.positive('stable_spam.eps', eps)
  _base.require(every >= 0, 'stable_spam.every', every, 'a number of steps of at least 0')

  def init(params):
    number = lambda: _tensors.per_tensor(facts, params)
    m, v = _tensors.zeros(params), _tensors.zeros(params)
    rate = dict(clip_rate=jnp.zeros(()))
    return State(jnp.zeros((), jnp.int32), m, v, number(), number(), number(), rate)

  def update(updates, state, params=None, **extra):
    count = optax.safe_increment(state.count)
    tops = _tensors.each(_top, facts, updates)
    peak = _tensors.mix(_tensors.unbiased(gamma3, count), state.peak, tops)
    rate = _tensors.share(_tensors.each(lambda _, g, p: jnp.abs(g) > p, facts, updates, peak))
    g = _tensors.each(_cut, facts, updates, tops, peak)

    norms = _tensors.each(_tensors.norm, facts, g)
    squares = jax.tree.map(jnp.square, norms)
    mu = _tensors.mix(_tensors.unbiased(gamma1, count), state.mu, norms)
    nu = _tensors.mix(_tensors.unbiased(gamma2, count), state.nu, squares)
    to = lambda _, g, n, mu, nu: g / jnp.where(n > 0, n, 1.0) * (mu / (jnp.sqrt(nu) + eps))
    g = _tensors.each(to, facts, g, norms, mu, nu)

    # The first step of a life forgets m and v: its factor is 0.
    age = count if every == 0 else jnp.where(count < every, count, count % every + 1)
    m = _tensors.mix(_tensors.unbiased(b1, age), state.m, g)
    v = _tensors.mix(_tensors.unbiased(b2, age), state.v, jax.tree.map(jnp.square, g))
    out = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), m, v)
    return out, State(count, m, v, peak, mu, nu, dict(clip_rate=rate))

  return _base.in_float32(optax.GradientTransformationExtraArgs(init, update))


def _top(fact, g):
  return jnp.max(jnp.abs(g), axis=_tensors.axes(fact), keepdims=True, initial=0.0)


def _cut(_, g, top, peak):
  return jnp.where(jnp.abs(g) > peak, g * (peak / jnp.where(top > 0, top, 1.0)), g)
