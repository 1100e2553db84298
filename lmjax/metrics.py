"""Metrics as sums: a metric is a pair (sum, weight), added over micro-batches, devices and steps,
and divided once.

All functions are pure and work on NumPy and JAX arrays, inside and outside of jit, unless they say
that they return floats.
"""

import math
from typing import Any, Mapping

import numpy as np

Metrics = Mapping[str, tuple[Any, Any]]


def merge(a: Metrics, b: Metrics) -> dict[str, tuple[Any, Any]]:
  """Adds sums and weights; a metric that only one side has is kept as it is."""
  out = dict(a)
  for name, (total, weight) in b.items():
    out[name] = (out[name][0] + total, out[name][1] + weight) if name in out else (total, weight)
  return out


def means(metrics: Metrics) -> dict[str, float]:
  """sum / weight of each metric as a float; NaN where nothing was weighed."""
  pairs = {k: (float(np.asarray(s)), float(np.asarray(w))) for k, (s, w) in metrics.items()}
  return {k: s / w if w else math.nan for k, (s, w) in pairs.items()}


def row_sums(loss_B: Any, weight_B: Any) -> dict[str, Any]:
  """What `ratio_stderr` needs of a batch: sums over rows of loss l_i and weight w_i, and of their
  products.

  `l_i` is the summed loss of row i (nats), `w_i` its weight (tokens). Batches are added entry by
  entry (`add_sums`).
  """
  seen_B = weight_B > 0
  return {
    'l': loss_B.sum(),
    'w': weight_B.sum(),
    'll': (loss_B * loss_B).sum(),
    'lw': (loss_B * weight_B).sum(),
    'ww': (weight_B * weight_B).sum(),
    'n': seen_B.sum(),
  }


def add_sums(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
  assert a.keys() == b.keys(), (sorted(a), sorted(b))
  return {k: a[k] + b[k] for k in a}


def ratio_stderr(sums: Mapping[str, Any]) -> float:
  """Standard error of the weighted mean m = sum l_i / sum w_i, rows being the independent draws.

  s^2 = n/(n-1) * sum_i (l_i - m w_i)^2 / (sum_i w_i)^2. Tokens of a row are correlated, so that
  counting them as independent would understate it. Source: Cochran, Sampling Techniques (1977),
  section 6.4 (the ratio estimator). NaN below two rows.
  """
  l, w, ll, lw, ww, n = (float(np.asarray(sums[k])) for k in ('l', 'w', 'll', 'lw', 'ww', 'n'))
  if n < 2 or w <= 0:
    return math.nan
  m = l / w
  residual = max(ll - 2 * m * lw + m * m * ww, 0.0)  # rounding can make it slightly negative
  return math.sqrt(residual * n / (n - 1)) / w


def stderr(total: Any, squares: Any, n: Any) -> float:
  """Standard error of the mean of n independent values from their sum and sum of squares; NaN below
  two values.
  """
  total, squares, n = (float(np.asarray(x)) for x in (total, squares, n))
  if n < 2:
    return math.nan
  return math.sqrt(max(squares - total * total / n, 0.0) / (n - 1) / n)


def perplexity(nats: float) -> float:
  """exp of the mean loss; infinite, not an error, where it overflows."""
  try:
    return math.exp(nats)
  except OverflowError:
    return math.inf


def bits_per_byte(nats: float, n_bytes: float) -> float:
  """Summed loss in nats over the bytes of the text: nats / (ln 2 * bytes); NaN without bytes."""
  return nats / (math.log(2) * n_bytes) if n_bytes else math.nan
