"""Which tokens a recursion takes, and moving them out of their row and back.

Axes: B rows, T places of a row, K places of the shorter row of those taken.
"""

from fractions import Fraction

import jax
import jax.numpy as jnp

from lmjax.parallel import shard


def shares(capacities, rounds: int) -> tuple[Fraction, ...]:
  """The share of a row's tokens that each recursion takes: (R - r + 1) / R, or what is given."""
  if capacities is None:
    return tuple(Fraction(rounds - r, rounds) for r in range(rounds))
  return tuple(Fraction(c).limit_denominator(1000) for c in capacities)


def size(share: Fraction, steps: int) -> int:
  """Tokens of a row of so many that a recursion takes at most: floor(share T), at least 1."""
  return max(1, share.numerator * steps // share.denominator)


def counts(share: Fraction, real_BT):
  """How many tokens a recursion takes of each row, (B,): the share of those that are no padding."""
  n_B = jnp.sum(real_BT, axis=1, dtype=jnp.int32)
  return jnp.maximum(1, share.numerator * n_B // share.denominator)


def largest(score_BT, among_BT, count_B):
  """The `count` places of each row with the largest scores among some; of equals the earlier."""
  score_BT = jnp.where(among_BT, score_BT, -jnp.inf)
  order_BT = jnp.argsort(-score_BT, axis=1, stable=True)
  return among_BT & (jnp.argsort(order_BT, axis=1) < count_B[:, None])


def places(chosen_BT, room: int):
  """The chosen places of each row, ascending, (B, room); T where there are fewer."""
  steps = chosen_BT.shape[1]
  here = jnp.arange(steps, dtype=jnp.int32)
  return jnp.sort(jnp.where(chosen_BT, here, steps), axis=1)[:, :room]


def take(x, places_BK):
  """x (B, T, ...) at the places, (B, K, ...); anything where a place is T."""
  here = jnp.minimum(places_BK, x.shape[1] - 1)
  pick = lambda x, here: jax.vmap(lambda row, i: row[i])(x, here)
  return _placed(pick, x.ndim)(x, here)


def put(x, places_BK, y):
  """x with y at the places; nothing is written where a place is T."""
  write = lambda x, here, y: jax.vmap(lambda row, i, new: row.at[i].set(new, mode='drop'))(
    x, here, y
  )
  return _placed(write, x.ndim)(x, places_BK, y.astype(x.dtype))


def _placed(f, ndim: int):
  """f, left to the partitioner; its result lies like activations."""
  names = ('batch', 'time', 'width')[:ndim] + (None,) * (ndim - 3)
  return shard.automatic(f, shard.spec(names))


def context(ctx, places_BK):
  """The context of the tokens at the places: with their positions and documents; the rest is
  padding.
  """
  per_token = {k: v for k, v in vars(ctx).items() if k.endswith('_BT') and v is not None}
  taken = {k: take(v, places_BK) for k, v in per_token.items()}
  segments = taken.get('segments_BT', jnp.ones_like(places_BK))
  held = places_BK < ctx.positions_BT.shape[1]
  return ctx.replace(**taken | dict(segments_BT=jnp.where(held, segments, 0), gaps=True))


def spread(a_BT, like):
  """(B, T) as wide as `like` (B, T, ...)."""
  return a_BT.reshape(*a_BT.shape, *(1,) * (like.ndim - 2))


def blend(chosen_BT, new, old):
  """Trees of (B, T, ...): the new ones at the chosen places."""
  return jax.tree.map(lambda a, b: jnp.where(spread(chosen_BT, b), a, b), new, old)
