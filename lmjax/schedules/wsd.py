"""Warm-up, stable, decay: rises over `warmup`, stays at the peak, and falls to `end` over the last `decay` of the run.

Hu et al., 2024 (MiniCPM, arXiv:2404.06395); the `sqrt` shape 1 - sqrt(p) from Haegele et al., 2024 (arXiv:2405.18392). `warmup` and `decay` are fractions of the run below 1,
numbers of steps from 1 on.
"""

from typing import Literal

import jax.numpy as jnp

from lmjax.registry import register
from lmjax.schedules import _ramp, _when


@register('schedule')
def wsd(steps: int, warmup: float = 0.01, decay: float = 0.2, shape: Literal['linear', 'sqrt'] = 'linear', end: float = 0.0):
  """1, then 1 - (1 - end) p or 1 - (1 - end) sqrt(p)."""
  n, m = _when.count('warmup', warmup, steps), _when.count('decay', decay, steps)
  _when.within(steps, warmup=n, decay=m)
  _when.end(end)
  if not m:
    raise ValueError(f'decay={decay}: at least one step of {steps} is expected; use constant() for no decay')
  def factor(step):
    p = _ramp.progress(step, steps - m, steps)
    fall = p if shape == 'linear' else jnp.sqrt(p)
    return _ramp.ramp(step, n) * (1 - (1 - end) * fall)
  return factor
