"""Means, tests and intervals of few seeds.

  gain      g = mean(baseline) - mean(treatment), positive where the treatment is lower
  test      Welch's t-test, two-sided; over several treatments the p-values are Holm's
  interval  g -+ t(0.975, v) s,   s^2 = s_b^2 / n_b + s_t^2 / n_t,   v by Welch and Satterthwaite
  curve     the baseline's mean loss against log(tokens), straight between its budgets and, with the
            slope of the last (first) two, beyond them, which is said; where it first meets a loss
  speedup   tokens that the curve needs for the treatment's loss / the treatment's tokens; its
            interval by drawing all means anew from Student's t, 10,000 times, seed 0

Welch, 1947 (Biometrika 34); Holm, 1979 (Scandinavian Journal of Statistics 6).
"""

import math
from typing import NamedTuple, Sequence

import numpy as np
from scipy import stats

from lmjax.experiment.claims import Interval

DRAWS = 10_000
NO_INTERVAL = Interval(math.nan, math.nan, math.nan)


class Sample(NamedTuple):
  """Final numbers of one arm at one budget."""

  values: tuple[float, ...]

  @property
  def mean(self) -> float:
    return float(np.mean(self.values)) if self.values else math.nan

  @property
  def sd(self) -> float:
    """Standard deviation over seeds, n - 1; NaN for fewer than two."""
    return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else math.nan

  @property
  def stderr(self) -> float:
    return self.sd / math.sqrt(len(self.values)) if self.values else math.nan


def gain(baseline: Sample, treatment: Sample) -> tuple[Interval, float]:
  """(the gain with its interval, p). NaN where an arm has fewer than two seeds."""
  value = baseline.mean - treatment.mean
  if len(baseline.values) < 2 or len(treatment.values) < 2:
    return Interval(value, math.nan, math.nan), math.nan
  a, b = baseline.stderr**2, treatment.stderr**2
  if a + b == 0:
    return Interval(value, value, value), 1.0 if value == 0 else 0.0
  na, nb = len(baseline.values), len(treatment.values)
  freedom = (a + b) ** 2 / (a * a / (na - 1) + b * b / (nb - 1))
  half = stats.t.ppf(0.975, freedom) * math.sqrt(a + b)
  p = 2 * stats.t.sf(abs(value) / math.sqrt(a + b), freedom)
  return Interval(value, value - half, value + half), float(p)


def holm(p: Sequence[float]) -> list[float]:
  """Adjusted p-values, in the given order; NaN stays and is not counted."""
  known = sorted((x, i) for i, x in enumerate(p) if not math.isnan(x))
  out, most = [math.nan] * len(p), 0.0
  for rank, (x, i) in enumerate(known):
    most = max(most, min(1.0, (len(known) - rank) * x))
    out[i] = most
  return out


def tokens_for(loss, tokens: Sequence[float], losses):
  """Tokens at which the curve through (tokens, losses), ascending in tokens, meets a loss; of many
  losses (...) and curves (..., points) at once. NaN where a curve does not fall there.
  """
  x, y, loss = np.log(np.asarray(tokens, float)), np.asarray(losses, float), np.asarray(loss)
  if len(x) < 2:
    return np.full(loss.shape, math.nan)[()]
  met = y <= loss[..., None]
  first = np.where(np.any(met, axis=-1), np.argmax(met, axis=-1), len(x))[..., None]
  i = np.clip(first - 1, 0, len(x) - 2)
  at = lambda values, i: np.take_along_axis(np.broadcast_to(values, y.shape), i, -1)[..., 0]
  with np.errstate(all='ignore'):
    slope = (at(y, i + 1) - at(y, i)) / (at(x, i + 1) - at(x, i))
    found = np.exp(at(x, i) + (loss - at(y, i)) / slope)
  return np.where(slope < 0, found, math.nan)[()]


def speedup(
  tokens: float, treatment: Sample, curve: Sequence[tuple[float, Sample]]
) -> tuple[Interval, bool]:
  """(the baseline's tokens over the treatment's `tokens`, whether it lies beyond the curve)."""
  curve = sorted(curve, key=lambda point: point[0])
  at, means = [t for t, _ in curve], [s.mean for _, s in curve]
  value = float(tokens_for(treatment.mean, at, means)) / tokens
  beyond = not min(means, default=0) <= treatment.mean <= max(means, default=0)
  samples = [treatment, *(s for _, s in curve)]
  if math.isnan(value) or any(len(s.values) < 2 for s in samples):
    return Interval(value, math.nan, math.nan), beyond
  rng = np.random.default_rng(0)
  draws = [s.mean + s.stderr * rng.standard_t(len(s.values) - 1, DRAWS) for s in samples]
  found = tokens_for(draws[0], at, np.stack(draws[1:], axis=-1)) / tokens
  # A drawn curve that rises needs no finite number of tokens: it widens the interval upwards.
  found = np.where(np.isnan(found), math.inf, found)
  low, high = np.quantile(found, [0.025, 0.975], method='inverted_cdf')
  return Interval(value, float(low), float(high)), beyond
