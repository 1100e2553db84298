"""Cosine decay: rises over `warmup`, then factor end + (1 - end) (1 + cos(pi p)) / 2, with p from 0 at the end of warm-up to 1 at the last step.

Loshchilov and Hutter, 2016 (arXiv:1608.03983), one cycle; a tenth at the end since GPT-3 (arXiv:2005.14165, appendix B). `warmup` is a fraction of the run below 1, a number of
steps from 1 on.
"""

import jax.numpy as jnp

from lmjax.registry import register
from lmjax.schedules import _ramp, _when


@register('schedule')
def cosine(steps: int, warmup: float = 0.01, end: float = 0.1):
  """end + (1 - end) (1 + cos(pi p)) / 2."""
  n = _when.count('warmup', warmup, steps)
  _when.within(steps, warmup=n)
  _when.end(end)
  def factor(step):
    p = _ramp.progress(step, n, steps)
    return _ramp.ramp(step, n) * (end + (1 - end) * 0.5 * (1 + jnp.cos(jnp.pi * p)))
  return factor
