"""`_base.leading`, which keeps the best entries without sorting, against sorting."""

import jax
import numpy as np
import pytest

from lmjax.decoding import _base

leading = jax.jit(_base.leading)


def by_sorting(scores_BV, amounts_BV, limit_B):
  out = np.zeros(scores_BV.shape, bool)
  for row, (scores, amounts, limit) in enumerate(zip(scores_BV, amounts_BV, limit_B)):
    before = 0.0
    for i in sorted(range(len(scores)), key=lambda i: (-scores[i], i)):
      out[row, i] = before < limit
      before += amounts[i]
  return out


@pytest.mark.parametrize('kind', ['distinct', 'ties', 'zeros of both signs', 'refused', 'extreme'])
def test_equals_sorting(kind):
  rng = np.random.default_rng(0)
  for _ in range(100):
    scores = rng.normal(size=(3, 24)).astype(np.float32)
    if kind == 'ties':
      scores = np.round(scores)
    elif kind == 'zeros of both signs':
      scores = np.where(rng.random(scores.shape) < 0.5, 0.0, -0.0).astype(np.float32)
    elif kind == 'refused':
      scores[rng.random(scores.shape) < 0.7] = -np.inf
    elif kind == 'extreme':
      scores *= np.float32(10.0) ** rng.integers(-35, 38, scores.shape)  # no denormals, which are 0
    limit = rng.integers(1, 26, 3)
    got = leading(scores, np.ones_like(scores), limit[:, None].astype(np.float32))
    np.testing.assert_array_equal(got, by_sorting(scores, np.ones_like(scores), limit))
    amounts = rng.integers(0, 5, scores.shape).astype(np.float32) / 4  # sums without rounding
    got = leading(scores, amounts, np.float32(2.5))
    np.testing.assert_array_equal(got, by_sorting(scores, amounts, [2.5] * 3))
