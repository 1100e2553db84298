"""Re-warming for continual pretraining: up from the old run's rate, then a cosine down to `end`.

  factor(s) = (r + start (1 - r)) (f + end (1 - f)),   r = min(1, (s + 1) / W)
  f = (1 + cos(pi u)) / 2,   u = clip((s - W) / (steps - W), 0, 1)

Gupta et al., 2023 (arXiv:2308.04014): a model trained to the end of its own decay goes on with
other data, its rate first raised again. The recipe is this schedule and
  --init_from=OLD_RUN     a new run from its parameters: fresh optimizer state, step 0
`start` is the old run's last rate over the new peak_lr: 0.1 where a cosine down to a tenth had the
same peak, or 0. They tried W of 0, 0.5, 1 and 2 % of the run, which hardly matters (0 too), and
peaks of half, once and twice the old one: a higher peak ends lower on the new data and forgets more
of the old. The loss rises while the rate does, also on the same data.

Continuity: the straight line of the warm-up has `start` at s = -1, the old run's last update, and
rises by (1 - start) / W each; with start = 0 the schedule is `cosine`. `warmup` is a fraction of
the run below 1, a number of steps from 1 on. The factor is 1 at s = W - 1 and W, and `end` at
s = steps, one update after the last. Trap: `start` is a factor of the new peak_lr, not a rate.
"""

import jax.numpy as jnp

from lmjax.registry import register
from lmjax.schedules import _base


@register('schedule')
def rewarm(start: float = 0.1, warmup: float = 0.01, end: float = 0.1, *, steps: int):
  """The schedule; ValueError for a warm-up not below `steps`, start or `end` outside [0, 1]."""
  w = _base.warmup_steps('rewarm.warmup', warmup, steps)
  _base.check_end('rewarm.start', start)
  _base.check_end('rewarm.end', end)

  def factor(step):
    shape = 0.5 * (1.0 + jnp.cos(jnp.pi * _base.progress(step, w, steps)))
    return _base.towards(_base.ramp(step, w), start) * _base.towards(shape, end)

  return factor
