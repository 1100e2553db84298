"""RMSProp: the gradient over the root of its running mean square, Adam without momentum.

  v <- b2 v + (1 - b2) g^2        update = g / (sqrt(v / (1 - b2^t)) + eps)        t = 1, 2, ...

Tieleman and Hinton, 2012, with Adam's correction of the bias and its eps outside the root, so that
it is Adam with b1 = 0 at half the memory. What brings momentum of its own, such as `schedule_free`,
takes it as its inner part. State: v in float32, 4 bytes a parameter, and a count.
"""

import optax

from lmjax.optim import _base
from lmjax.registry import register


@register('optim')
def rmsprop(b2: float = 0.999, eps: float = 1e-8) -> optax.GradientTransformationExtraArgs:
  """RMSProp's direction; ValueError for b2 outside [0, 1), eps not above 0."""
  _base.decay_rate('rmsprop.b2', b2)
  _base.positive('rmsprop.eps', eps)
  scale = optax.scale_by_rms(decay=b2, eps=eps, eps_in_sqrt=False, bias_correction=True)
  return _base.in_float32(scale)
