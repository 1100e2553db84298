"""SGDP: momentum whose step has no part along the weights, where their length does not matter.

  v <- momentum v + g        p = v,   or with nesterov   g + momentum v
  views of a matrix, channels first, then the layer:  if max |cos(g_i, w_i)| < delta / sqrt(n),
    p_i <- p_i - u_i (u_i . p_i),   u_i = w_i / (||w_i|| + eps)          see `_radial.py`

Heo et al., 2020 (arXiv:2006.08217) and its public code: delta = 0.1, wd_ratio = 0.1, eps = 1e-8,
dampening 0. Decay that weakens by wd_ratio where the projection acts: `sgdp(decay=decay(rate=
0.001))`; the public code's weight_decay is this rate times (1 - momentum). v itself is never
projected; the public code projects its buffer where nesterov is off, by sharing its memory. Where
it may act, and the metric `projected`: see `adamp`.

State: v in float32, 4 bytes a parameter.
"""

from typing import Annotated

import optax

from lmjax.optim import _base, _radial
from lmjax.registry import Part, register


@register('optim')
def sgdp(
  momentum: float = 0.9,
  nesterov: bool = False,
  eps: float = 1e-8,
  delta: float = 0.1,
  wd_ratio: float = 0.1,
  decay: Annotated[Part | None, 'optim'] = None,
  *,
  facts,
) -> optax.GradientTransformationExtraArgs:
  """SGDP's direction; ValueError for momentum outside [0, 1), delta or eps not above 0, wd_ratio
  outside [0, 1].
  """
  _base.decay_rate('sgdp.momentum', momentum)
  _radial.check('sgdp', decay, delta, wd_ratio, eps)
  trace = optax.trace(decay=momentum, nesterov=nesterov)
  return _radial.radial(trace, decay, delta, wd_ratio, eps, facts)
