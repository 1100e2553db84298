"""Warm-up, stable, decay: the factor stays at 1 until the last part of the run.

  factor(s) = min(1, (s + 1) / W) (f + end (1 - f)),   u = clip((s - (steps - D)) / D, 0, 1)
  f = 1 - u   (shape='linear')     or     f = 1 - sqrt(u)   (shape='sqrt')

Hu et al., 2024 (MiniCPM, arXiv:2404.06395); the shape 1 - sqrt and D = 0.2 are Haegele et al., 2024
(arXiv:2405.18392). `warmup` and `decay` are fractions of the run below 1, numbers of steps from 1
on; a positive fraction decays for at least one step. The factor is 1 from s = W - 1 to steps - D,
and `end` at s = steps, one update after the last. Updates before steps - D are those of any longer
run, but a finished run cannot be extended: its decay would move.
"""

from typing import Literal

import jax.numpy as jnp

from lmjax.registry import register
from lmjax.schedules import _base


def _lengths(warmup: float, decay: float, steps: int) -> tuple[int, int]:
  """W and D. Raises ValueError where they do not fit into the run."""
  w = _base.warmup_steps('wsd.warmup', warmup, steps)
  if decay == 0:
    raise ValueError(
      'wsd.decay=0 is not accepted: a length above 0 is expected; constant() is the '
      'schedule without decay'
    )
  d = max(1, _base.count('wsd.decay', decay, steps))
  if w + d > steps or warmup < 1 and decay < 1 and warmup + decay > 1 + 1e-9:
    raise ValueError(
      f'wsd.decay={_base.show(decay)} is not accepted behind '
      f'wsd.warmup={_base.show(warmup)}: together at most the run '
      f'(steps={steps}) is expected'
    )
  return w, d


@register('schedule')
def wsd(
  warmup: float = 0.01,
  decay: float = 0.2,
  shape: Literal['linear', 'sqrt'] = 'linear',
  end: float = 0.0,
  *,
  steps: int,
):
  """The schedule; ValueError where warm-up and decay do not fit, or an argument is out of range."""
  w, d = _lengths(warmup, decay, steps)
  _base.check_end('wsd.end', end)
  if shape not in ('linear', 'sqrt'):
    raise ValueError(f"wsd.shape={shape!r} is not accepted: 'linear' or 'sqrt' is expected")

  def factor(step):
    u = _base.progress(step, steps - d, steps)
    f = 1.0 - (jnp.sqrt(u) if shape == 'sqrt' else u)
    return _base.ramp(step, w) * _base.towards(f, end)

  return factor
