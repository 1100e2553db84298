"""Lion: the sign of an interpolation between momentum and gradient.

  update = sign(b1 m + (1 - b1) g)        then m <- b2 m + (1 - b2) g

Chen et al., 2023 (arXiv:2302.06675). The step uses the old m with b1, the stored momentum uses b2,
so the order matters; no bias correction, no epsilon, sign(0) = 0. Every coordinate moves by exactly
the learning rate: use 3 to 10 times less than for Adam, and 3 to 10 times more decay (which stays
outside the sign: `lion() | decay(rate=1.0)`). The paper's values for language models are b1 = 0.95,
b2 = 0.98; the defaults are its general ones.

State: m in float32, 4 bytes a parameter, and a count that Optax keeps.
"""

import optax

from lmjax.optim import _base
from lmjax.registry import register


@register('optim')
def lion(b1: float = 0.9, b2: float = 0.99) -> optax.GradientTransformationExtraArgs:
  """Lion's direction; ValueError for b1 or b2 outside [0, 1)."""
  _base.decay_rate('lion.b1', b1)
  _base.decay_rate('lion.b2', b2)
  return _base.in_float32(optax.scale_by_lion(b1=b1, b2=b2))
