"""Balanced assignment by auction: experts bid for tokens until each has its share.

  maximize sum_t a[t, e(t)]   where every expert gets n / E of the n tokens

Bertsekas' auction (MIT LIDS P-2108, 1992) in the form of BASE layers (Lewis et al., 2021,
arXiv:2103.16716), where an expert bids for many tokens at once. With the price c_t, at first 0, and
m the share of an expert, a round is

  v = a - c                                   a token that e holds is worth more to e than any other
  e bids v_t - v_(m+1) + eps                  on its m best tokens; eps on those that it holds
  t goes to the highest bidder, c_t rises by that bid

with eps = max((max a - min a) / 50, 1e-4). It ends once every token has a bid: n bids then make a
partition, whose total is near the best. Behind ROUNDS rounds a held token is worth its score
without the price and must be bid for anew, which ends soon. The number of rounds has an upper
limit; should it ever be reached, tokens that nobody holds fill the free places in order, so that
the result is always a partition.

Scores that are not finite count as the smallest finite one. All ties go to the lower index. Where n
does not divide by E the first n mod E experts get one token more. Tokens that are not `real` are
nobody's: they are not bid for and count in no share.

Axes: N tokens, E experts, K places in an expert's list of its best tokens.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

ROUNDS, LIMIT = 100, 400  # the authors' number of exact rounds; a limit that ends all doubt
HELD = 1.0  # worth of a held token: scores are shifted so that none is above 0


class Auction(NamedTuple):
  """Between rounds: prices, holders (E where there is none), and whether all tokens have a bid."""

  round: jax.Array
  price_N: jax.Array
  holder_N: jax.Array
  done: jax.Array


def balanced(scores_NE, real_N):
  """(expert of each token, int32, E where it is not real; rounds, int32). Nothing is
  differentiable.

  Args:
    scores_NE: the higher, the better; any float dtype, bids are float32.
    real_N: bool, tokens that take part.
  """
  tokens, experts = scores_NE.shape
  a_EN, eps = _shifted(jax.lax.stop_gradient(scores_NE).astype(jnp.float32), real_N)
  share_E = shares(jnp.sum(real_N, dtype=jnp.int32), experts)
  places = min(-(-tokens // experts) + 1, tokens)

  def step(s: Auction) -> Auction:
    exact = s.round < ROUNDS
    held_EN = s.holder_N == jnp.arange(experts)[:, None]
    value_EN = jnp.where(held_EN, jnp.where(exact, HELD, a_EN), a_EN - s.price_N)
    bids_EN = _bids(value_EN, share_E, places, eps)
    bids_EN = jnp.where(held_EN & exact, eps, bids_EN)
    high_N = jnp.max(bids_EN, axis=0)
    holder_N = jnp.where(high_N > 0, jnp.argmax(bids_EN, axis=0), experts)
    done = jnp.all((high_N > 0) | ~real_N)
    return Auction(s.round + 1, s.price_N + high_N, holder_N, done)

  nobody_N = jnp.full_like(real_N, experts, dtype=jnp.int32)
  first = Auction(jnp.zeros_like(share_E[0]), jnp.zeros_like(a_EN[0]), nobody_N, ~jnp.any(real_N))
  last = jax.lax.while_loop(lambda s: ~s.done & (s.round < LIMIT), step, first)
  return _filled(last.holder_N, share_E, real_N), last.round


def shares(n, experts: int):
  """Tokens of each expert: n / E, the first n mod E experts one more."""
  return n // experts + (jnp.arange(experts, dtype=jnp.int32) < n % experts)


def _shifted(a_NE, real_N):
  """(scores as (E, N), the largest 0, -inf for tokens that do not take part; eps)."""
  usable_NE = real_N[:, None] & jnp.isfinite(a_NE)
  low = jnp.min(a_NE, where=usable_NE, initial=jnp.inf)
  top = jnp.max(a_NE, where=usable_NE, initial=-jnp.inf)
  low, top = (jnp.where(jnp.isfinite(x), x, 0.0) for x in (low, top))
  a_NE = jnp.where(usable_NE, a_NE, low) - top
  return jnp.where(real_N[:, None], a_NE, -jnp.inf).T, jnp.maximum((top - low) / 50, 1e-4)


def _bids(value_EN, share_E, places: int, eps):
  """Bids (E, N) of each expert on its best tokens, as many as its share; 0 on the others."""
  best_EK, token_EK = jax.lax.top_k(value_EN, places)
  next_E1 = jnp.take_along_axis(best_EK, jnp.minimum(share_E, places - 1)[:, None], axis=1)
  bid_EK = jnp.where(jnp.arange(places) < share_E[:, None], best_EK - next_E1 + eps, 0.0)
  row_E1 = jnp.arange(len(share_E))[:, None]
  return jnp.zeros_like(value_EN).at[row_E1, token_EK].set(bid_EK, unique_indices=True)


def _filled(holder_N, share_E, real_N):
  """Holders, and for tokens without one the free places in order. A finished auction has none."""
  experts = len(share_E)
  free_E = share_E - jnp.sum(holder_N == jnp.arange(experts)[:, None], axis=1, dtype=jnp.int32)
  left_N = real_N & (holder_N == experts)
  turn_N = jnp.cumsum(left_N, dtype=jnp.int32) - 1
  place_N = jnp.searchsorted(jnp.cumsum(free_E), turn_N, side='right')
  return jnp.where(left_N, place_N, holder_N).astype(jnp.int32)
