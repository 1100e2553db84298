"""What mixtures share: reading the weights of a sum such as '0.7*a() + 0.3*b()'."""

import math
from typing import Sequence

import numpy as np


def given(names: Sequence[str], weights: Sequence[float | None]) -> np.ndarray | None:
  """The weights normalised, or None where none is given.

  Raises ValueError naming the source, when some have a weight and others none, or a weight is not
  positive and finite.
  """
  if all(w is None for w in weights):
    return None
  for name, w in zip(names, weights, strict=True):
    if w is None:
      raise ValueError(
        f'source {name} has no weight while others do; give each source a weight, or none of them'
      )
    if not (math.isfinite(w) and w > 0):
      raise ValueError(
        f'weight {w} of source {name}: a positive number is expected; leave out a source that is '
        'not wanted'
      )
  return normalised(weights)


def normalised(weights) -> np.ndarray:
  w = np.asarray(weights, np.float64)
  return w / w.sum()


def sizes(names: Sequence[str], tokens: Sequence[int]) -> np.ndarray:
  """Tokens of each source. Raises ValueError naming an empty source."""
  for name, n in zip(names, tokens, strict=True):
    if n <= 0:
      raise ValueError(f'source {name} has {n} tokens; at least 1 is expected')
  return np.asarray(tokens, np.float64)
