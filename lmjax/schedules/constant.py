"""Rises over `warmup`, then stays at the peak. Knows no end, so that a run may be made longer (if `warmup` is a number of steps).

The plainest schedule, as in Kingma and Ba, 2014 (arXiv:1412.6980).
"""

from lmjax.registry import register
from lmjax.schedules import _ramp, _when


@register('schedule', extendable=lambda a: a['warmup'] >= 1 or a['warmup'] == 0)
def constant(steps: int, warmup: float = 0.0):
  """1 after warm-up."""
  n = _when.count('warmup', warmup, steps)
  return lambda step: _ramp.ramp(step, n)
