"""Verdicts follow from intervals."""

import math

import pytest

from lmjax.experiment import AsGood
from lmjax.experiment import Better
from lmjax.experiment import Faster
from lmjax.experiment.claims import Interval

NONE = Interval(math.nan, math.nan, math.nan)


@pytest.mark.parametrize(
  'claim, gain, want',
  [
    (Better(), (0.02, 0.01, 0.03), 'reproduced'),
    (Better(0.05), (0.02, 0.01, 0.03), 'direction only'),
    (Better(0.05), (0.06, 0.01, 0.09), 'reproduced'),
    (Better(), (0.02, -0.01, 0.05), 'not at this scale'),
    (Better(), (-0.02, -0.05, 0.01), 'not at this scale'),
    (Better(), (-0.02, -0.03, -0.01), 'contradicted'),
    (AsGood(0.01), (0.02, 0.01, 0.03), 'reproduced'),
    (AsGood(0.01), (-0.005, -0.009, 0.0), 'reproduced'),
    (AsGood(0.01), (-0.005, -0.02, 0.01), 'not at this scale'),
    (AsGood(0.01), (0.0, -0.1, 0.1), 'not at this scale'),
    (AsGood(0.01), (-0.02, -0.05, 0.01), 'not at this scale'),
    (AsGood(0.01), (-0.02, -0.03, -0.011), 'contradicted'),
  ],
)
def test_of_gains(claim, gain, want):
  assert claim.verdict(Interval(*gain), NONE, 0.001) == want


@pytest.mark.parametrize(
  'speedup, want',
  [
    ((2.1, 1.5, 2.9), 'reproduced'),
    ((1.4, 1.1, 1.9), 'direction only'),
    ((2.1, 0.9, 4.0), 'not at this scale'),
    ((0.8, 0.5, 1.2), 'not at this scale'),
    ((0.8, 0.5, 0.9), 'contradicted'),
  ],
)
def test_of_speedups(speedup, want):
  assert Faster(2.0).verdict(NONE, Interval(*speedup), 0.001) == want


@pytest.mark.parametrize('claim', [Better(), Faster(2.0)])
def test_an_effect_that_holms_method_does_not_keep_is_noise(claim):
  away = Interval(3.0, 2.0, 4.0)
  assert claim.verdict(away, away, 0.04) == 'reproduced'
  assert claim.verdict(away, away, 0.06) == 'not at this scale'
  assert claim.verdict(away, away, math.nan) == 'not at this scale'
