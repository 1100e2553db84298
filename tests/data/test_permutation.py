"""The Feistel permutation: bijective for every size, and mixing, which an affine map is not."""

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import numpy as np
import pytest

from lmjax.data import permutation
from lmjax.data.permutation import Permutation


@pytest.mark.parametrize('n', [*range(1, 70), 127, 128, 129, 1000, 4095, 4096, 4097])
def test_bijective(n):
  got = Permutation(n, permutation.key(3, 'rows', n))[np.arange(n)]
  assert np.array_equal(np.sort(got), np.arange(n))


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 20_000), seed=st.integers(0, 2**63))
def test_bijective_any(n, seed):
  got = Permutation(n, seed)[np.arange(n)]
  assert got.min() == 0 and got.max() == n - 1 and len(np.unique(got)) == n


@settings(max_examples=50, deadline=None)
@given(n=st.integers(2**33, 2**62), i=st.integers(0, 2**33 - 1))
def test_huge_domains(n, i):
  p = Permutation(n, 5)
  near = p[np.array([i, (i + 1) % n, (i + 2) % n])]
  assert len(set(near.tolist())) == 3 and near.min() >= 0 and near.max() < n
  assert near[0] == p[i]  # one at a time is the same


def test_refusals():
  with pytest.raises(ValueError, match='n=0'):
    Permutation(0, 1)
  for bad in (-1, 5, np.array([0, 5])):
    with pytest.raises(IndexError):
      Permutation(5, 1)[bad]


def test_small_domains_reach_every_order():
  """All 24 orders of four things, about equally often."""
  counts = {}
  for s in range(4800):
    order = tuple(Permutation(4, permutation.key(s))[np.arange(4)].tolist())
    counts[order] = counts.get(order, 0) + 1
  assert len(counts) == 24
  chi2 = sum((c - 200) ** 2 / 200 for c in counts.values())
  assert chi2 < 60, chi2  # 23 degrees of freedom: 60 has probability 4e-5


def test_keys_differ():
  words = [(0,), (1,), (0, 0), (0, 'a'), ('0',), (0, 'a', 1), (1, 'a', 0)]
  assert len({permutation.key(*w) for w in words}) == len(words)
  a, b = (Permutation(1000, permutation.key(0, 'rows', e))[np.arange(1000)] for e in (0, 1))
  assert (a == b).mean() < 0.02 and abs(np.corrcoef(a, b)[0, 1]) < 0.1


def test_pinned():
  """These values order the data of every run; a change here changes runs that exist."""
  assert Permutation(1000, permutation.key(7, 'rows', 2))[np.arange(6)].tolist() == [
    870,
    958,
    213,
    122,
    333,
    578,
  ]


def mixing(order: np.ndarray) -> tuple[float, float]:
  """(correlation of neighbours' steps, largest chi-square per degree of freedom of buckets over
  batches).
  """
  n = len(order)
  steps = np.diff(order) % n
  lag = abs(np.corrcoef(order[1:], order[:-1])[0, 1]) + abs(steps.std() / (n / np.sqrt(12)) - 1)
  buckets = (order * 16 // n)[: n // 512 * 512].reshape(-1, 512)
  counts = np.stack([(buckets == b).sum(1) for b in range(16)], axis=1)
  chi2 = ((counts - 32.0) ** 2 / 32.0).sum(1) / 15
  return lag, abs(chi2.mean() - 1)


def test_mixing_and_that_an_affine_map_fails():
  n = 1 << 16
  lag, chi2 = mixing(Permutation(n, permutation.key(11))[np.arange(n)])
  assert lag < 0.03, lag
  assert chi2 < 0.15, chi2  # the mean of chi-square per degree over batches drawn at random is 1
  affine = (np.arange(n) * 40_503 + 12_345) % n  # the control: coprime step
  lag, chi2 = mixing(affine)
  assert lag > 0.5 and chi2 > 0.5, (lag, chi2)


def test_uniform():
  x = permutation.uniform(permutation.key(1), 100_000)
  assert 0 <= x.min() and x.max() < 1 and abs(x.mean() - 0.5) < 0.005
  assert abs(np.corrcoef(x[1:], x[:-1])[0, 1]) < 0.02
  assert abs(np.histogram(x, 10, (0, 1))[0] - 10_000).max() < 500
  assert np.array_equal(x[:5], permutation.uniform(permutation.key(1), 5))
