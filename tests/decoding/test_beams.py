"""Beams: what lives on, what ends and is kept, ties, and the choice at the end."""

import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.decoding import _beams

NONE = -np.inf


def beams(texts, scores, ended=None, ended_scores=None, t=2):
  """One row."""
  texts = jnp.int32([texts])
  ended = jnp.full_like(texts, -1) if ended is None else jnp.int32([ended])
  none = jnp.full(texts.shape[:2], NONE)
  kept = none if ended_scores is None else jnp.float32([ended_scores])
  return _beams.Beams(texts, jnp.float32([scores]), ended, kept, jnp.int32(t))


TEXTS = [[1, 2, -1, -1], [3, 4, -1, -1]]


def test_the_best_continuations_live_and_those_that_end_leave():
  """Of the best four, two end; the others live, though behind them in score."""
  grown, parents, tokens = _beams.grow(
    beams(TEXTS, [-1.0, -2.0]),
    jnp.int32([0, 0, 0, 1, 1, 1]),
    jnp.int32([[9, 5, 6, 9, 7, 8]]),
    jnp.float32([[-1.1, -3.0, -5.0, -2.2, -4.0, -2.9]]),
    9,
  )
  assert grown.texts_BKT.tolist() == [[[3, 4, 8, -1], [1, 2, 5, -1]]]
  assert parents.tolist() == [[1, 0]] and tokens.tolist() == [[8, 5]] and int(grown.t) == 3
  np.testing.assert_allclose(grown.score_BK, [[-2.9, -3.0]])
  assert grown.ended_BKT.tolist() == [[[1, 2, 9, -1], [3, 4, 9, -1]]]
  np.testing.assert_allclose(grown.ended_score_BK, [[-1.1, -2.2]])


def test_only_the_best_2k_are_looked_at():
  """Where all of them end, no text lives on."""
  grown, _, _ = _beams.grow(
    beams(TEXTS[:1], [0.0]),
    jnp.int32([0, 0, 0]),
    jnp.int32([[9, 9, 5]]),
    jnp.float32([[-1, -2, -3]]),
    9,
  )
  assert grown.score_BK.tolist() == [[NONE]]
  assert _beams.best(grown)[0].tolist() == [[[1, 2, 9, -1]]]


@pytest.mark.parametrize('mean, kept', [(False, [7, 9, -1, -1]), (True, [1, 2, 9, -1])])
def test_ended_texts_are_kept_by_sum_or_by_mean(mean, kept):
  """-2 of two tokens against -2.4 of three."""
  grown, _, _ = _beams.grow(
    beams(TEXTS[:1], [-2.0], [[7, 9, -1, -1]], [-2.0]),
    jnp.int32([0, 0]),
    jnp.int32([[9, 5]]),
    jnp.float32([[-2.4, -2.5]]),
    9,
    mean=mean,
  )
  assert grown.ended_BKT.tolist() == [[kept]]


def test_ties_decide_between_equal_scores():
  ask = lambda ties: _beams.grow(
    beams(TEXTS[:1], [0.0]),
    jnp.int32([0, 0, 0]),
    jnp.int32([[5, 6, 7]]),
    jnp.float32([[-1, -1, -1]]),
    -1,
    ties_BM=ties,
  )[2].tolist()
  assert ask(None) == [[5]] and ask(jnp.float32([[-3, -1, -2]])) == [[6]]


def test_the_end_takes_live_and_ended_texts_by_score_over_length():
  texts, means = _beams.best(
    beams(TEXTS, [-1.0, NONE], [[1, 9, -1, -1], [2, 3, 4, 9]], [-0.8, -4.4])
  )
  assert texts.tolist() == [[[1, 9, -1, -1], [1, 2, -1, -1]]]
  np.testing.assert_allclose(means, [[-0.4, -0.5]], rtol=1e-6)
