"""Cosine: warm-up, then half a period of a cosine down to `end`.

  factor(s) = min(1, (s + 1) / W) (f + end (1 - f))
  f = (1 + cos(pi u)) / 2,   u = clip((s - W) / (steps - W), 0, 1)

Loshchilov and Hutter, 2016 (SGDR, arXiv:1608.03983), one period; down to a tenth as in GPT-3 and
Chinchilla (arXiv:2203.15556), which found that the period must equal the run. `warmup` is a
fraction of the run below 1, a number of steps from 1 on. The factor is 1 at s = W - 1 and W, and
`end` at s = steps, one update after the last.
"""

import jax.numpy as jnp

from lmjax.registry import register
from lmjax.schedules import _base


@register('schedule')
def cosine(warmup: float = 0.01, end: float = 0.1, *, steps: int):
  """The schedule; ValueError for a warm-up not below `steps`, or `end` outside [0, 1]."""
  w = _base.warmup_steps('cosine.warmup', warmup, steps)
  _base.check_end('cosine.end', end)

  def factor(step):
    shape = 0.5 * (1.0 + jnp.cos(jnp.pi * _base.progress(step, w, steps)))
    return _base.ramp(step, w) * _base.towards(shape, end)

  return factor
