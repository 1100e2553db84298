"""Dropout that runs on every kind of mesh; Linen's own draws a mask that an explicit mesh refuses
to combine with sharded rows.
"""

import jax
import jax.numpy as jnp

from lmjax.parallel import shard


def dropout(module, x_BTD, rate: float, ctx):
  """x with each value zeroed with probability `rate` and the others divided by 1 - rate; x itself
  unless `ctx.train`.

  Srivastava et al., 2014 (Dropout, JMLR 15). Draws from the stream `dropout` of the Linen module.
  """
  if not rate or not ctx.train:
    return x_BTD
  kept_BTD = jax.random.bernoulli(module.make_rng('dropout'), 1 - rate, x_BTD.shape)
  kept_BTD = shard.shard(kept_BTD, 'batch', 'time', 'width')
  return jnp.where(kept_BTD, x_BTD / (1 - rate), jnp.zeros_like(x_BTD))
