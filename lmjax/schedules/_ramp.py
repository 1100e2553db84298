"""The rise of the learning rate that all schedules share."""

import jax.numpy as jnp


def ramp(step, warmup: int):
  """(step + 1) / (warmup + 1) up to 1 at step `warmup`: the first step already moves, and without warm-up it is 1."""
  return jnp.minimum(1.0, (jnp.asarray(step, jnp.float32) + 1) / (warmup + 1))


def progress(step, start: int, stop: int):
  """0 at `start` rising linearly to 1 at `stop`, clipped."""
  return jnp.clip((jnp.asarray(step, jnp.float32) - start) / max(stop - start, 1), 0.0, 1.0)
