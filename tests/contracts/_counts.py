"""N-grams counted by hand, for tests of what looks them up."""

import collections

import numpy as np

WEIGHTS = (0.01, 0.04, 0.15, 0.18, 0.12)
IDS = np.random.default_rng(0).integers(0, 6, 3000) * np.random.default_rng(1).integers(0, 2, 3000)
OFFSETS = np.array([0, 3, 3, 4, 900, 3000])


def counted(order):
  """{context: Counter of what follows} by hand, documents apart."""
  out = collections.defaultdict(collections.Counter)
  for a, b in zip(OFFSETS, OFFSETS[1:]):
    document = IDS[a:b].tolist()
    for i in range(len(document)):
      for g in range(1, order):
        if i >= g:
          out[tuple(document[i - g : i])][document[i]] += 1
  return out


def expected(counts, tail, token, weights=WEIGHTS):
  total = 0.0
  for g, w in enumerate(weights, 1):
    follow = counts.get(tuple(tail[-g:]), {}) if len(tail) >= g else {}
    total += w * follow.get(token, 0) / max(1, sum(follow.values()))
  return total
