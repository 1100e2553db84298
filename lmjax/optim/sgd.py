"""Stochastic gradient descent, with momentum (heavy ball) or Nesterov's.

  v <- momentum v + g        update = v,   or with nesterov   g + momentum v

Polyak, 1964; Nesterov's form as in Sutskever et al., 2013, and PyTorch (dampening 0). The momentum
is a sum, not a mean: with momentum 0.9 the step is up to ten times the gradient. State: v in
float32, 4 bytes a parameter; none without momentum.
"""

import optax

from lmjax.optim import _base
from lmjax.registry import register


@register('optim')
def sgd(momentum: float = 0.0, nesterov: bool = False) -> optax.GradientTransformationExtraArgs:
  """The gradient or its momentum; ValueError for momentum outside [0, 1), nesterov without it."""
  _base.decay_rate('sgd.momentum', momentum)
  _base.require(
    momentum > 0 or not nesterov, 'sgd.nesterov', nesterov, 'nesterov=False, or a momentum above 0,'
  )
  if momentum == 0:
    return optax.with_extra_args_support(optax.identity())
  return _base.in_float32(optax.trace(decay=momentum, nesterov=nesterov))
