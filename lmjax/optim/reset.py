"""Restarts of an optimizer: every `every` updates `inner` forgets all that it remembers.

  before update k = every, 2 every, ... (counted from 0):   inner's state <- what it begins with

Moments become 0 and so does the count by which their bias is corrected: with Adam the update behind
a reset is g / (|g| + eps), 1 in size for every coordinate. Updates that were refused do not count.

The "momentum reset" of Glentis et al., 2025 (arXiv:2505.22922), every 200 updates, there together
with `refactor` for low-rank factors; also the restart of LORO and, with more besides, of ReLoRA.
Low-Rank-restarts is
  --config.model.linear='low_rank(rank=...)'
  --config.optim='clip() | reset(inner=adam(), every=200) | decay() | refactor(every=200)'
To reset what is kept of the factors alone, as the paper words it:
  split(matrix=reset(inner=adam(), every=200), rest=adam())   in place of   reset(...)
With `low_rank` all that `split` calls a matrix is a factor. The paper's decay is 0.

`inner` is any part or chain that follows the schedule, with whatever it keeps: its counts, bases
and moving norms too. State: inner's and a count. Traps: m without v, or v without the count, is
another method (first steps a tenth, or three times the size); the step behind a reset is a step of
signs, large for parameters whose gradients are noise, so that some lower the rate there (ReLoRA).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lmjax.optim import _base, _groups, _nest
from lmjax.registry import register


class State(NamedTuple):
  """count: updates made. inner: inner's."""

  count: jax.Array
  inner: Any


@register('optim', needs=lambda args: _groups.needs(args['inner']))
def reset(inner: _nest.Inner = 'adam()', every: int = 200) -> optax.GradientTransformationExtraArgs:
  """`inner`, begun anew now and then; ValueError for `every` below 1, an inner part that owns its
  learning rate or moves the parameters by itself.
  """
  _base.require(every >= 1, 'reset.every', every, 'a number of at least 1')
  _nest.check('reset.inner', inner)
  tx = _groups.build(inner)

  def init(params):
    return State(jnp.zeros((), jnp.int32), tx.init(params))

  def update(updates, state, params=None, **extra):
    due = state.count % every == 0  # at first it is fresh already
    first = tx.init(updates if params is None else params)
    begun = jax.tree.map(lambda new, old: jnp.where(due, new, old), first, state.inner)
    updates, new = tx.update(updates, begun, params, **extra)
    return updates, State(optax.safe_increment(state.count), new)

  return optax.GradientTransformationExtraArgs(init, update)
