"""Objectives that live outside lmjax and go wrong on purpose."""

import jax.numpy as jnp

from lmjax.objectives import clm
from lmjax.registry import register

MARK = 1  # a byte that no text holds


@register('objective', lookahead=1, causal=True)
class Poisoned(clm.Clm):
  """clm, not a number for a batch that holds the byte MARK."""

  def loss(self, params, vars, batch, rng, train: bool = True):
    out = super().loss(params, vars, batch, rng, train)
    return _spoilt(out, batch, jnp.nan)


@register('objective', lookahead=1, causal=True)
class Infinite(clm.Clm):
  """clm, infinite for a batch that holds MARK."""

  def loss(self, params, vars, batch, rng, train: bool = True):
    return _spoilt(super().loss(params, vars, batch, rng, train), batch, jnp.inf)


@register('objective', lookahead=1, causal=True)
class Spiking(clm.Clm):
  """clm, fifty times as large for a batch that holds MARK."""

  def loss(self, params, vars, batch, rng, train: bool = True):
    return _spoilt(super().loss(params, vars, batch, rng, train), batch, 50.0)


def _spoilt(out, batch, factor):
  bad = (batch['tokens'] == MARK).any()
  return out._replace(sum=out.sum * jnp.where(bad, factor, 1.0))
