"""Adam: the gradient's running mean over the root of its running mean square.

  m <- b1 m + (1 - b1) g        v <- b2 v + (1 - b2) g^2        t = 1, 2, ...
  update = (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
  nesterov: the numerator is b1 m / (1 - b1^(t+1)) + (1 - b1) g / (1 - b1^t)

Kingma and Ba, 2014 (arXiv:1412.6980); Nesterov's form is Dozat, 2016, without the extra b2 of its
algorithm 2. The update is not scaled by the learning rate; AdamW (Loshchilov and Hutter, 2017,
arXiv:1711.05101) is `adam() | decay(rate=0.1)`. b2 = 0.95 is GPT-3's and Llama's value; Adam's own
is 0.999. Elementwise, so stacked layers and shards need no care.

State: m and v in float32 whatever the parameters' dtype, 8 bytes a parameter, and a count.
`mu_dtype='bfloat16'` stores m in two bytes (6 in all); the arithmetic stays float32. v is always
float32: its steps of (1 - b2) are lost in bfloat16.
The bias correction is Optax's, in float32: 8e-5 off in the first step at b2 = 0.9999.
Trap: eps is compared with the root of v: where gradients come near 1e-8 it shrinks the update.
"""

from typing import Literal

import optax

from lmjax.optim import _base
from lmjax.registry import register


@register('optim')
def adam(
  b1: float = 0.9,
  b2: float = 0.95,
  eps: float = 1e-8,
  nesterov: bool = False,
  mu_dtype: Literal['float32', 'bfloat16'] | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Adam's direction; ValueError for b1, b2 outside [0, 1), eps not above 0, unknown mu_dtype."""
  _base.decay_rate('adam.b1', b1)
  _base.decay_rate('adam.b2', b2)
  _base.positive('adam.eps', eps)
  _base.require(
    mu_dtype in (None, 'float32', 'bfloat16'),
    'adam.mu_dtype',
    mu_dtype,
    "'float32', 'bfloat16' or None",
  )
  inner = _base.in_float32(optax.scale_by_adam(b1=b1, b2=b2, eps=eps, nesterov=nesterov))
  return inner if mu_dtype in (None, 'float32') else _stored(inner, mu_dtype)


def _stored(inner, mu_dtype) -> optax.GradientTransformationExtraArgs:
  """`inner` with m rounded once, between steps; Optax's own `mu_dtype` also rounds b1 m within."""

  def narrow(state):
    return state._replace(mu=optax.tree.cast(state.mu, mu_dtype))

  def init(params):
    return narrow(inner.init(params))

  def update(updates, state, params=None, **extra):
    state = state._replace(mu=_base.wide(state.mu))
    updates, state = inner.update(updates, state, params, **extra)
    return updates, narrow(state)

  return optax.GradientTransformationExtraArgs(init, update)
