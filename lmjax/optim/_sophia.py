"""What the two forms of Sophia share: the clipped step, and a diagonal that is renewed now and
then.

`metrics` of the state: `win_rate`, the share of coordinates with |m| < rho h, and `hess_norm`, the
Euclidean norm of h, both from the last renewal; `clip_rate`, the share of coordinates at their
bound in the last step. A healthy win rate peaks early and stays between 0.1 and 0.5.
"""

from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lmjax.optim import _base, _tensors


class State(NamedTuple):
  count: jax.Array
  m: Any
  h: Any
  metrics: dict[str, jax.Array]


def sophia(
  name: str,
  estimate: Callable,
  b1: float,
  b2: float,
  rho: float,
  eps: float,
  every: int,
  one_in: int,
) -> optax.GradientTransformationExtraArgs:
  """Sophia with estimate(params, extra) -> a diagonal, in float32.

  Raises ValueError for b1, b2 outside [0, 1), rho, eps not above 0, every or one_in
  below 1.
  """
  _base.decay_rate(f'{name}.b1', b1)
  _base.decay_rate(f'{name}.b2', b2)
  _base.positive(f'{name}.rho', rho)
  _base.positive(f'{name}.eps', eps)
  _base.require(every >= 1, f'{name}.every', every, 'a number of steps of at least 1')
  _base.require(one_in >= 1, f'{name}.one_in', one_in, 'a number of rows of at least 1')

  def init(params):
    names = ('win_rate', 'hess_norm', 'clip_rate')
    metrics = {k: jnp.zeros(()) for k in names}
    m, h = _tensors.zeros(params), _tensors.zeros(params)
    return State(jnp.zeros((), jnp.int32), m, h, metrics)

  def update(updates, state, params=None, **extra):
    m = _tensors.mix(b1, state.m, _base.wide(updates))

    def renew(h):
      h = _tensors.mix(b2, h, estimate(_base.wide(params), extra))
      wins = _tensors.share(jax.tree.map(lambda m, h: jnp.abs(m) < rho * h, m, h))
      return h, dict(win_rate=wins, hess_norm=optax.tree.norm(h))

    def keep(h):
      return h, {k: state.metrics[k] for k in ('win_rate', 'hess_norm')}

    h, metrics = jax.lax.cond(state.count % every == 0, renew, keep, state.h)
    bound = jax.tree.map(lambda h: jnp.maximum(rho * h, eps), h)
    metrics['clip_rate'] = _tensors.share(jax.tree.map(lambda m, b: jnp.abs(m) >= b, m, bound))

    def step(m, h, b, u):  # an infinite h would hold its coordinate still for ever: refuse the step
      return jnp.where(jnp.isfinite(h), jnp.clip(m / b, -1.0, 1.0), jnp.nan).astype(u.dtype)

    out = jax.tree.map(step, m, h, bound, updates)
    return out, State(optax.safe_increment(state.count), m, h, metrics)

  return optax.GradientTransformationExtraArgs(init, update)
