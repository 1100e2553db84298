"""Linear decay: rises over `warmup`, then falls in a straight line to `end` of the peak at the last step.

Devlin et al., 2018 (BERT, arXiv:1810.04805). `warmup` is a fraction of the run below 1, a number of steps from 1 on.
"""

from lmjax.registry import register
from lmjax.schedules import _ramp, _when


@register('schedule')
def linear(steps: int, warmup: float = 0.01, end: float = 0.0):
  """1 - (1 - end) p."""
  n = _when.count('warmup', warmup, steps)
  _when.within(steps, warmup=n)
  _when.end(end)
  return lambda step: _ramp.ramp(step, n) * (1 - (1 - end) * _ramp.progress(step, n, steps))
