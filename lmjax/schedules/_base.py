"""What schedules share: counts of steps, the warm-up, and the way from 1 to `end`.

A schedule maps the number of updates made so far, s = 0, 1, ..., to a float32 factor of peak_lr.
Its length arguments are a fraction of the run (0 <= x < 1, rounded down to whole steps) or, from 1
on, a whole number of steps.

  warm-up of W steps:   min(1, (s + 1) / W)
  progress:             u = clip((s - start) / (stop - start), 0, 1)
  factor at shape f:    f + end (1 - f)

So the first update has the factor 1 / W, never 0; updates W - 1 and W have exactly 1; the decay
starts from update W. A schedule that decays has exactly `end` at s = steps, the state after the
run: the last update, s = steps - 1, is still above it, and none is wasted on a factor of 0. Beyond
`steps` the factor stays `end`.
"""

import jax.numpy as jnp

# Products such as 0.29 x 100 fall short of a whole number by a rounding.
_SLACK = 1e-6


def show(value: float) -> str:
  """A length as its user writes it: 2000, not 2000.0."""
  return repr(int(value)) if float(value).is_integer() else repr(value)


def count(where: str, value: float, steps: int) -> int:
  """A length in whole steps. Raises ValueError naming `where` (as in 'cosine.warmup')."""
  if 0 <= value < 1:
    return int(value * steps + _SLACK)
  if value >= 1 and float(value).is_integer():
    return int(value)
  raise ValueError(
    f'{where}={value!r} is not accepted: a fraction of the run (0 <= x < 1) or a '
    'whole number of steps is expected'
  )


def warmup_steps(where: str, value: float, steps: int) -> int:
  """The length of the warm-up; it must end before the run does, or peak_lr is never used."""
  n = count(where, value, steps)
  if n >= steps:
    raise ValueError(
      f'{where}={show(value)} is not accepted: a warm-up shorter than the run '
      f'(steps={steps}) is expected'
    )
  return n


def check_end(where: str, value: float):
  if not 0 <= value <= 1:
    raise ValueError(
      f'{where}={value!r} is not accepted: a fraction of peak_lr, from 0 to 1, is expected'
    )


def is_absolute(args: dict) -> bool:
  """Whether the warm-up is the same in a longer run: `extendable`, where there is no end."""
  return args['warmup'] == 0 or args['warmup'] >= 1


def ramp(step, warmup: int):
  """min(1, (s + 1) / W), exactly 1 at its end: XLA may divide by multiplying with 1 / W."""
  n = jnp.asarray(step) + 1
  return jnp.where(n >= warmup, 1.0, n.astype(jnp.float32) / max(1, warmup))


def progress(step, start: int, stop: int):
  """u, exactly 0 up to `start` and 1 from `stop` on; differences of integers, exact beyond 2^24."""
  n, size = jnp.asarray(step) - start, stop - start
  return jnp.where(n >= size, 1.0, jnp.maximum(n, 0).astype(jnp.float32) / size)


def towards(shape, end: float):
  """1 where shape is 1 and `end` where it is 0, both exactly."""
  return shape + end * (1.0 - shape)
