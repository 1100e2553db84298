"""An objective that lives outside lmjax and reports a checksum of the tokens that it sees."""

import jax.numpy as jnp

from lmjax.objectives import clm
from lmjax.registry import register


@register('objective', lookahead=1, causal=True)
class Watched(clm.Clm):
  """clm, with a metric that depends on every token, its place in its row, segments and positions.

  Whole numbers below 2^24, so that float32 adds them exactly in any order.
  """

  def loss(self, params, vars, batch, rng, train: bool = True):
    out = super().loss(params, vars, batch, rng, train)
    place = jnp.arange(batch['tokens'].shape[1]) % 13 + 1
    mixed = batch['tokens'] * 31 + batch['segments'] * 7 + batch['positions'] * 3
    rows = (mixed * place).sum(axis=1) % 65521  # no sum over rows hides a change within one
    squares = (rows * (rows % 97)) % 65521
    one = jnp.ones(())
    sums = dict(
      stream=(rows.sum().astype(jnp.float32), one), twice=(squares.sum().astype(jnp.float32), one)
    )
    return out._replace(metrics={**out.metrics, **sums})
