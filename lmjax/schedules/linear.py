"""Linear: warm-up, then a straight line down to `end`.

  factor(s) = min(1, (s + 1) / W) (f + end (1 - f))
  f = 1 - u,   u = clip((s - W) / (steps - W), 0, 1)

BERT's schedule (Devlin et al., 2018, arXiv:1810.04805: 10,000 of 1,000,000 steps of warm-up, then
to 0). `warmup` is a fraction of the run below 1, a number of steps from 1 on. The factor is 1 at
s = W - 1 and W, and `end` at s = steps: with end = 0 the last update still has 1 / (steps - W).
"""

from lmjax.registry import register
from lmjax.schedules import _base


@register('schedule')
def linear(warmup: float = 0.01, end: float = 0.0, *, steps: int):
  """The schedule; ValueError for a warm-up not below `steps`, or `end` outside [0, 1]."""
  w = _base.warmup_steps('linear.warmup', warmup, steps)
  _base.check_end('linear.end', end)

  def factor(step):
    return _base.ramp(step, w) * _base.towards(1.0 - _base.progress(step, w, steps), end)

  return factor
