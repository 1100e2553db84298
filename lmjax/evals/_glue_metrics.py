"""The metrics of GLUE: accuracy, F1 of class 1, Matthews' correlation, Pearson's and Spearman's.

Where a measure is 0 / 0 it is 0 and not NaN: Matthews' correlation of a constant predictor, F1
where class 1 is neither predicted nor there, correlations with a constant. All are fractions, not
per cent.
"""

import math

import numpy as np


def accuracy(predicted, true) -> float:
  return float(np.mean(np.asarray(predicted) == np.asarray(true)))


def counts(predicted, true) -> tuple[int, int, int, int]:
  """True positives, false positives, false negatives, true negatives; class 1 is positive."""
  p, t = np.asarray(predicted) == 1, np.asarray(true) == 1
  return int((p & t).sum()), int((p & ~t).sum()), int((~p & t).sum()), int((~p & ~t).sum())


def f1(predicted, true) -> float:
  """2 TP / (2 TP + FP + FN)."""
  tp, fp, fn, _ = counts(predicted, true)
  return 2 * tp / (2 * tp + fp + fn) if tp else 0.0


def matthews(predicted, true) -> float:
  """(TP TN - FP FN) / sqrt((TP + FP)(TP + FN)(TN + FP)(TN + FN)), of two classes."""
  tp, fp, fn, tn = counts(predicted, true)
  root = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
  return (tp * tn - fp * fn) / root if root else 0.0


def pearson(predicted, true) -> float:
  """Covariance over the product of the standard deviations."""
  x, y = (_centred(np.asarray(v, np.float64)) for v in (predicted, true))
  root = math.sqrt(float(x @ x)) * math.sqrt(float(y @ y))
  return float(x @ y) / root if root else 0.0


def _centred(x: np.ndarray) -> np.ndarray:
  """x less its mean; exactly 0 where all values are the same, which rounding would hide."""
  return np.zeros_like(x) if (x == x[0]).all() else x - x.mean()


def spearman(predicted, true) -> float:
  """Pearson's correlation of the ranks, equal values sharing the mean of theirs."""
  return pearson(ranks(predicted), ranks(true))


def ranks(values) -> np.ndarray:
  """Ranks from 1, the mean rank where values are equal."""
  _, place, n = np.unique(np.asarray(values, np.float64), return_inverse=True, return_counts=True)
  last = np.cumsum(n)
  return (last - (n - 1) / 2)[place]


METRICS = dict(accuracy=accuracy, f1=f1, matthews=matthews, pearson=pearson, spearman=spearman)
