"""AdamP: Adam whose step has no part along the weights, where their length does not matter.

  p = Adam's update, eps outside the root
  views of a matrix, channels first, then the layer:  if max |cos(g_i, w_i)| < delta / sqrt(n),
    p_i <- p_i - u_i (u_i . p_i),   u_i = w_i / (||w_i|| + eps)          see `_radial.py`

Heo et al., 2020 (arXiv:2006.08217) and its public code: delta = 0.1, wd_ratio = 0.1, eps = 1e-8, b1
= 0.9, b2 = 0.999. Acts on all matrices by their facts (tables of embeddings too), each layer by
itself. The paper weakens the decay of a projected tensor by wd_ratio; for that the decay part is
nested, `adamp(decay=decay(rate=0.1))`. `adamp() | decay(rate=0.1)` decays all alike.

Scale invariance holds for weights whose output is normalized at once (weight norm, QK norm, batch
norm), not for most matrices of a pre-norm transformer: the metric `projected`, the share of the
matrices of this step, says how often it acts. Random gradients are nearly orthogonal to weights of
many elements, which is what the threshold's root of n allows for; for a matrix in -> out it must
hold in all `out` channels.

State: Adam's m and v in float32, 8 bytes a parameter, and a count.
"""

from typing import Annotated

import optax

from lmjax.optim import _base, _radial
from lmjax.registry import Part, register


@register('optim')
def adamp(
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  delta: float = 0.1,
  wd_ratio: float = 0.1,
  decay: Annotated[Part | None, 'optim'] = None,
  *,
  facts,
) -> optax.GradientTransformationExtraArgs:
  """AdamP's direction; ValueError for b1, b2 outside [0, 1), delta or eps not above 0, wd_ratio
  outside [0, 1].
  """
  _base.decay_rate('adamp.b1', b1)
  _base.decay_rate('adamp.b2', b2)
  _radial.check('adamp', decay, delta, wd_ratio, eps)
  adam = optax.scale_by_adam(b1=b1, b2=b2, eps=eps)
  return _radial.radial(adam, decay, delta, wd_ratio, eps, facts)
