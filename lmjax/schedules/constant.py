"""Constant: warm-up, then 1.

  factor(s) = min(1, (s + 1) / W)

`warmup` is a fraction of the run below 1, a number of steps from 1 on. The factor is 1 from
s = W - 1 on. A run may be extended where the warm-up is a number of steps or 0.
"""

from lmjax.registry import register
from lmjax.schedules import _base


@register('schedule', extendable=_base.is_absolute)
def constant(warmup: float = 0.0, *, steps: int):
  """The schedule; ValueError for a warm-up that is no length or not below `steps`."""
  w = _base.warmup_steps('constant.warmup', warmup, steps)
  return lambda step: _base.ramp(step, w)
