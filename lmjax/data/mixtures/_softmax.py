"""Weights from scores: the exponentiated gradient begun at equal weights."""

import numpy as np


def softmax(x) -> np.ndarray:
  """exp(x) of sum 1, float64 (m,)."""
  w = np.exp(np.asarray(x, np.float64) - np.max(x))
  return w / w.sum()
