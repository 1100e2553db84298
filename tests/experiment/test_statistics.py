"""Statistics against scipy and by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from lmjax.experiment import statistics
from lmjax.experiment.statistics import Sample

A, B = Sample((3.0, 3.2, 3.1)), Sample((2.9, 2.8, 3.0, 2.7))


def test_welch_as_scipy_has_it():
  gain, p = statistics.gain(A, B)
  want = stats.ttest_ind(A.values, B.values, equal_var=False)
  low, high = want.confidence_interval()
  np.testing.assert_allclose([p, *gain[1:]], [want.pvalue, low, high], rtol=1e-9)
  assert gain.value == pytest.approx(3.1 - 2.85)


def test_one_seed_gives_a_gain_without_an_interval():
  gain, p = statistics.gain(A, Sample((3.0,)))
  assert gain.value == pytest.approx(0.1) and math.isnan(gain.low) and math.isnan(p)
  assert math.isnan(Sample(()).mean) and math.isnan(Sample((1.0,)).sd)


def test_equal_values_are_no_evidence():
  gain, p = statistics.gain(Sample((1.0, 1.0)), Sample((1.0, 1.0)))
  assert gain == (0, 0, 0) and p == 1


def test_holm_steps_down_and_never_falls():
  assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
  assert statistics.holm([0.9, 0.8]) == [1.0, 1.0]
  got = statistics.holm([math.nan, 0.02])
  assert math.isnan(got[0]) and got[1] == 0.02


@pytest.mark.parametrize('loss, tokens', [(3.0, 100), (2.8, 200), (2.9, 2**0.5 * 100), (2.4, 800)])
def test_the_curve_is_straight_in_the_logarithm_of_tokens(loss, tokens):
  assert statistics.tokens_for(loss, [100, 200, 400], [3.0, 2.8, 2.6]) == pytest.approx(tokens)


def test_beyond_its_ends_the_curve_goes_on_straight():
  at = statistics.tokens_for(3.2, [100, 200, 400], [3.0, 2.8, 2.7])
  assert at == pytest.approx(50)
  at = statistics.tokens_for(2.5, [100, 200, 400], [3.0, 2.8, 2.7])
  assert at == pytest.approx(1600)


def test_a_curve_that_does_not_fall_has_no_tokens():
  assert math.isnan(statistics.tokens_for(2.5, [100, 200], [3.0, 3.0]))
  assert math.isnan(statistics.tokens_for(2.5, [100], [3.0]))


def test_a_curve_counts_where_it_first_meets_a_loss():
  """Noise far from there, or a rise behind it, changes nothing."""
  x = [100, 200, 400, 800]
  assert statistics.tokens_for(2.7, x, [3.0, 2.8, 2.6, 2.65]) == pytest.approx(400 / 2**0.5)
  assert statistics.tokens_for(2.7, x, [3.0, 3.1, 2.6, 2.5]) == pytest.approx(200 * 2**0.8)
  assert math.isnan(statistics.tokens_for(2.4, x, [3.0, 2.8, 2.6, 2.65]))
  assert math.isnan(statistics.tokens_for(3.2, x, [3.0, 3.1, 2.6, 2.5]))


def curve(noise):
  of = lambda mean: Sample((mean - noise, mean, mean + noise))
  return [(100, of(3.0)), (200, of(2.8)), (400, of(2.6))], of


def test_speedup_is_tokens_over_tokens():
  points, of = curve(0.001)
  found, beyond = statistics.speedup(200, of(2.6), points)
  assert found.value == pytest.approx(2) and not beyond
  assert 1.9 < found.low < 2 < found.high < 2.1
  found, beyond = statistics.speedup(200, of(2.5), points)
  assert beyond and found.value == pytest.approx(2 * 2**0.5)


def test_noise_widens_the_interval_of_a_speedup():
  width = []
  for noise in (0.001, 0.01):
    points, of = curve(noise)
    found, _ = statistics.speedup(200, of(2.7), points)
    width.append(found.high - found.low)
  assert width[1] > 5 * width[0]


def test_many_seeds_narrow_the_interval_of_a_speedup():
  """By the delta method: 0.01 / 20 on each mean of a slope of 0.2 / log 2 is about 0.5 %."""
  rng = np.random.default_rng(0)
  draw = lambda mean: Sample(tuple(mean + 0.01 * rng.standard_normal(400)))
  points = [(100, draw(3.0)), (200, draw(2.8)), (400, draw(2.6))]
  found, _ = statistics.speedup(200, draw(2.7), points)
  assert 0.004 < (found.high - found.low) / found.value < 0.02


def test_the_interval_of_a_speedup_covers_the_truth():
  """Of 200 repetitions with known truth about 95 % of the intervals hold it."""
  rng, held = np.random.default_rng(0), 0
  draw = lambda mean: Sample(tuple(mean + 0.005 * rng.standard_normal(4)))
  for _ in range(200):
    points = [(100, draw(3.0)), (200, draw(2.8)), (400, draw(2.6))]
    found, _ = statistics.speedup(200, draw(2.7), points)
    held += found.low <= 2**0.5 <= found.high
  assert 180 <= held
