"""Inverse square root: rises over `warmup` steps, then factor sqrt((warmup + 1) / (step + 1)).

Vaswani et al., 2017 (arXiv:1706.03762, section 5.3) up to the peak's name; T5 with 10,000 steps of warm-up (arXiv:1910.10683). Knows no end, so that a run may be made longer.
"""

import jax.numpy as jnp

from lmjax.registry import register
from lmjax.schedules import _ramp, _when


@register('schedule', extendable=lambda a: a['warmup'] >= 1 or a['warmup'] == 0)
def inverse_sqrt(steps: int, warmup: float = 1000.0):
  """sqrt((warmup + 1) / (step + 1)) after warm-up."""
  n = _when.count('warmup', warmup, steps)
  return lambda step: _ramp.ramp(step, n) * jnp.minimum(
      1.0, jnp.sqrt((n + 1) / (jnp.asarray(step, jnp.float32) + 1)))
