"""Schedule-Free learning: averaging the iterates takes the place of lowering the learning rate.

  y = (1 - b1) z + b1 x                       s = min(1, t / warmup)           t = 1, 2, ...
  d = inner's update, computed at y           w = t^r s^power,   c = w / (sum of all w so far)
  z <- z - lr s d                             x <- (1 - c) x + c z

x are the parameters of the run, evaluated, sampled and saved; gradients are taken at y.
Defazio et al., 2024 (arXiv:2405.15682) and its public code: b1 = 0.9, r = 0, power = 2. The default
inner part makes it the paper's AdamW; `sgd()` makes it Schedule-Free SGD. Decay belongs inside,
where it moves z as in the paper (at y): `schedule_free(inner=rmsprop() | decay(rate=0.1))`; behind
the whole it would shift y alone. Clipping may stand in front.

Everything but d is in proportion to the rate, so the rate need not be known here: with D = (x - z)
/ lr, kept in the state,
  e = D + s d        update = c e        D <- (1 - c) e
moves x as above when the step subtracts lr times the update, whatever the parameterization's factor
of a parameter's rate; (1 - b1) D leads from x to y (fact `gradient_at`). The rate must not change
(fact `owns_lr`): no schedule, the ramp `warmup` is here.

State: D in float32, 4 bytes a parameter, a count, the weights so far as multiples of the last one
(w itself may leave float32), and inner's: 8 bytes a parameter in all for the default. Parameters
below float32 are refused: x moves by c times what z does, soon less than their spacing. Traps: b1
above 0.9 for long runs, as the authors advise (0.95, 0.98); the training loss is that at y, worse
than at x; batch statistics would have to be gathered at x.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lmjax.optim import _base, _groups, _nest, _tensors
from lmjax.registry import register


class State(NamedTuple):
  """count: updates made. total: the sum of w over the last w. ahead: D. inner: inner's."""

  count: jax.Array
  total: jax.Array
  ahead: Any
  inner: Any


def _needs(args: dict):
  return _groups.needs(args['inner'])


def _gradient_at(args: dict):
  return lambda state: jax.tree.map(lambda D: (1 - args['b1']) * D, state.ahead)


@register('optim', owns_lr=True, needs=_needs, gradient_at=_gradient_at)
def schedule_free(
  inner: _nest.Inner = 'rmsprop()',
  b1: float = 0.9,
  warmup: int = 0,
  r: float = 0.0,
  power: float = 2.0,
) -> optax.GradientTransformationExtraArgs:
  """Schedule-Free around `inner`; ValueError for b1 outside [0, 1), negative warmup, r or power, an
  inner part that owns its learning rate, and, when they come, parameters below float32.
  """
  _base.decay_rate('schedule_free.b1', b1)
  _base.require(warmup >= 0, 'schedule_free.warmup', warmup, 'a number of at least 0')
  _base.require(0 <= r < math.inf, 'schedule_free.r', r, 'a finite number of at least 0')
  _base.require(
    0 <= power < math.inf, 'schedule_free.power', power, 'a finite number of at least 0'
  )
  _nest.check('schedule_free.inner', inner)
  tx = _groups.build(inner)

  def init(params):
    zero = jnp.zeros((), jnp.int32)
    return State(zero, jnp.zeros(()), _tensors.zeros(params), tx.init(params))

  def update(updates, state, params=None, **extra):
    d, new = tx.update(updates, state.inner, params, **extra)
    count = optax.safe_increment(state.count)
    t = jnp.asarray(count, jnp.float32)
    s = jnp.minimum(1.0, t / warmup) if warmup else 1.0
    before = jnp.maximum(t - 1, 1.0)
    last = (before / t) ** r  # the weight before over this one
    if warmup:
      last *= (jnp.minimum(1.0, before / warmup) / s) ** power
    total = 1.0 + last * state.total
    c = 1.0 / total
    ahead = jax.tree.map(lambda D, d: D + s * d, state.ahead, d)
    out = jax.tree.map(lambda e: c * e, ahead)
    return out, State(count, total, jax.tree.map(lambda e: (1 - c) * e, ahead), new)

  inside = _base.in_float32(optax.GradientTransformationExtraArgs(init, update))

  def checked(params):
    for p in jax.tree.leaves(params):
      if jnp.finfo(p.dtype).bits < 32:
        raise ValueError(
          f'config.optim: schedule_free averages parameters of at least float32, not {p.dtype}; '
          "set config.model.param_dtype='float32'"
        )
    return inside.init(params)

  return optax.GradientTransformationExtraArgs(checked, inside.update)
