"""Inverse square root: warm-up, then a decay that knows no end.

  factor(s) = min(1, (s + 1) / W) sqrt(W / max(s, W)),   W at least 1
  ramp='flat':   factor(s) = sqrt(W / max(s, W))

Vaswani et al., 2017 (arXiv:1706.03762, section 5.3), up to the constant that makes the peak 1;
'flat' is T5's (Raffel et al., 2019, arXiv:1910.10683) and PaLM's, which hold the peak instead of
warming up. They used W = 4,000 and 10,000 steps. `warmup` is a fraction of the run below 1, a
number of steps from 1 on. The factor is 1 at s = W - 1 and W, 1/2 at s = 4 W, and sqrt(W / steps)
at s = steps: there is no `end`. A run may be extended where the warm-up is a number of steps or 0.
"""

from typing import Literal

import jax.numpy as jnp

from lmjax.registry import register
from lmjax.schedules import _base


@register('schedule', extendable=_base.is_absolute)
def inverse_sqrt(warmup: float = 0.01, ramp: Literal['linear', 'flat'] = 'linear', *, steps: int):
  """The schedule; ValueError for a warm-up not below `steps`, or an unknown ramp."""
  w = max(1, _base.warmup_steps('inverse_sqrt.warmup', warmup, steps))
  if ramp not in ('linear', 'flat'):
    raise ValueError(f"inverse_sqrt.ramp={ramp!r} is not accepted: 'linear' or 'flat' is expected")

  def factor(step):
    decayed = jnp.sqrt(w / jnp.maximum(jnp.asarray(step), w).astype(jnp.float32))
    return decayed * _base.ramp(step, w if ramp == 'linear' else 0)

  return factor
