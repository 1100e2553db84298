"""Balanced assignment: partitions, against the optimum and the auction written out, soon over."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

import _table
from lmjax.kernels import assignment
from lmjax.kernels.assignment import auction

solve = jax.jit(assignment.balanced)


def normal(*shape, seed=0):
  return np.asarray(_table.normal(*shape, seed=seed))


def solved(a, real=None):
  real = np.ones(len(a), bool) if real is None else real
  expert, rounds = solve(jnp.asarray(a), jnp.asarray(real))
  return np.asarray(expert), int(rounds)


def shares(n, experts):
  return [n // experts + (e < n % experts) for e in range(experts)]


def total(a, expert):
  return np.sum(np.asarray(a, np.float64)[np.arange(len(a)), expert])


def best(a):
  """The highest total there is, from scipy's solver over places of experts."""
  column = np.repeat(np.arange(a.shape[1]), shares(*a.shape))
  rows, places = optimize.linear_sum_assignment(-a[:, column].astype(np.float64))
  return total(a[rows], column[places])


def written_out(a):
  """The auction in plain loops: (expert of each token, rounds)."""
  n, experts = a.shape
  m, eps = n // experts, max((a.max() - a.min()) / np.float32(50), np.float32(1e-4))
  a, price, holder = a - a.max(), np.zeros(n, np.float32), [None] * n
  for rounds in range(1, 1000):
    bids = np.zeros((experts, n), np.float32)
    for e in range(experts):
      value = [np.float32(1) if holder[t] == e else a[t, e] - price[t] for t in range(n)]
      order = sorted(range(n), key=lambda t: (-value[t], t))  # noqa: B023
      for t in order[:m]:
        bids[e, t] = eps if holder[t] == e else value[t] - value[order[m]] + eps
    if (bids.max(0) > 0).all():
      return bids.argmax(0), rounds
    price += bids.max(0)
    holder = [bids[:, t].argmax() if bids[:, t].max() > 0 else None for t in range(n)]


@pytest.mark.parametrize('shape', [(32, 4), (33, 4), (5, 8), (1, 2), (2, 2), (7, 3)])
def test_a_partition_with_equal_shares(shape):
  for seed in range(5):
    expert, _ = solved(normal(*shape, seed=seed))
    assert np.bincount(expert, minlength=shape[1]).tolist() == shares(*shape)


def test_the_total_is_near_the_optimum():
  kept = [total(a, solved(a)[0]) / best(a) for a in (normal(32, 4, seed=s) for s in range(20))]
  assert min(kept) >= 0.98 and 0.995 <= np.mean(kept) and max(kept) <= 1 + 1e-6


def test_equals_the_auction_written_out():
  for seed in range(12):
    a = normal(32, 4, seed=seed)
    want, rounds = written_out(a)
    got, took = solved(a)
    np.testing.assert_array_equal(got, want)
    assert took == rounds and 1 < rounds < auction.ROUNDS


def test_what_is_not_real_takes_no_place():
  a, real = normal(32, 4), np.random.default_rng(1).random(32) < 0.6
  alone = solved(a[real])[0]
  for filler in (0.0, 1e9, np.nan, np.inf):
    got, _ = solved(np.where(real[:, None], a, np.float32(filler)), real)
    np.testing.assert_array_equal(got[real], alone)
    assert (got[~real] == 4).all()
  assert np.bincount(alone).tolist() == shares(real.sum(), 4)
  assert (solved(a, np.zeros(32, bool))[0] == 4).all()


def test_scores_that_are_not_finite_count_as_the_smallest():
  a = normal(32, 4)
  bad = np.random.default_rng(2).random(a.shape) < 0.2
  low = np.where(bad, a[~bad].min(), a)
  for value in (np.nan, np.inf, -np.inf):
    np.testing.assert_array_equal(solved(np.where(bad, np.float32(value), a))[0], solved(low)[0])
  assert np.bincount(solved(np.full((32, 4), np.nan, np.float32))[0]).tolist() == [8] * 4


def test_the_order_of_tokens_and_a_constant_do_not_matter():
  a, order = normal(32, 4), np.random.default_rng(3).permutation(32)
  np.testing.assert_array_equal(solved(a[order])[0], solved(a)[0][order])
  whole = np.round(a * 64)  # exact also far from 0
  np.testing.assert_array_equal(solved(whole + 2.0**17)[0], solved(whole)[0])


@pytest.mark.parametrize(
  'a',
  [
    np.zeros((64, 4)),
    np.tile(np.arange(4.0), (64, 1)),  # all want the same expert
    np.repeat(normal(4, 4), 16, 0),  # many alike
    np.repeat(normal(4, 4), 16, 0) + 1e-3 * normal(64, 4, seed=1),
  ],
  ids=['equal', 'one', 'alike', 'nearly'],
)
def test_ties_and_favourites_end_soon(a):
  expert, rounds = solved(a.astype(np.float32))
  assert np.bincount(expert).tolist() == [16] * 4 and rounds < auction.ROUNDS
  assert total(a, expert) >= 0.97 * best(a)


def test_behind_the_exact_rounds_it_ends_soon(monkeypatch):
  monkeypatch.setattr(auction, 'ROUNDS', 3)
  late = jax.jit(lambda a: auction.balanced(a, jnp.ones(32, bool)))
  for seed in range(10):
    a = normal(32, 4, seed=seed)
    expert, rounds = late(a)
    assert np.bincount(expert).tolist() == [8] * 4 and 3 < rounds < 60
    assert total(a, np.asarray(expert)) >= 0.9 * best(a)


def test_at_the_limit_free_places_are_filled(monkeypatch):
  monkeypatch.setattr(auction, 'LIMIT', 2)
  cut = jax.jit(lambda a, real: auction.balanced(a, real))
  for seed in range(5):
    real = np.random.default_rng(seed).random(33) < 0.8
    expert, rounds = cut(normal(33, 4, seed=seed), real)
    assert rounds == 2 and (np.asarray(expert)[~real] == 4).all()
    assert np.bincount(np.asarray(expert)[real]).tolist() == shares(real.sum(), 4)


def test_the_rounds_are_one_loop_and_not_differentiated():
  a = jnp.asarray(normal(32, 4))
  program = str(jax.make_jaxpr(assignment.balanced)(a, jnp.ones(32, bool)))
  assert program.count('while[') == 1 and program.count('top_k[') == 1
  used = lambda a: jnp.sum(a[jnp.arange(32), assignment.balanced(a, jnp.ones(32, bool))[0]])
  expert, _ = solved(a)
  np.testing.assert_array_equal(jax.grad(used)(a), np.eye(4)[expert])  # of the picked alone
