"""Names and standard errors of scores."""

import math
from typing import Any, Sequence

import numpy as np

from lmjax import kinds


def label(name: str, lm, **how) -> str:
  """'name[key=value, ...]': what the number depends on, with what the language model says of itself
  (`protocol`).
  """
  told: dict[str, Any] = {**how, **getattr(lm, 'protocol', {})}
  inner = ', '.join(f'{k}={v}' for k, v in told.items() if v is not None)
  return f'{name}[{inner}]' if inner else name


def share(hits: Sequence[bool]) -> tuple[float, float | None]:
  """(p, sqrt(p (1 - p) / (n - 1))), the standard error None below two items."""
  n = len(hits)
  p = float(np.mean(np.asarray(hits, np.float64)))
  return p, math.sqrt(p * (1 - p) / (n - 1)) if n > 1 else None


def mean(values: Sequence[float]) -> tuple[float, float | None]:
  """(mean, standard error of the mean)."""
  x = np.asarray(values, np.float64)
  return float(x.mean()), float(x.std(ddof=1) / math.sqrt(len(x))) if len(x) > 1 else None


def exp_mean(nats: Sequence[float]) -> tuple[float, float | None]:
  """(exp of the mean, its standard error to first order)."""
  m, error = mean(nats)
  value = exp(m)
  return value, None if error is None else value * error


def exp(nats: float) -> float:
  """Infinite where it overflows."""
  try:
    return math.exp(nats)
  except OverflowError:
    return math.inf


def shares(name: str, hits, lm, **how) -> kinds.Score:
  return kinds.Score(label(name, lm, **how), *share(hits))


def likelihoods(lm):
  """Raises kinds.Unsupported for a language model that says it has no log-likelihoods."""
  getattr(lm, 'require_likelihoods', lambda: None)()
