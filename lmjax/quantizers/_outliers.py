"""Emergent outlier features: a feature of the hidden state with |x| >= 6 in at least a quarter of
the layers, and at 6 % or more of the positions in any of them.

The hidden state of a layer is what goes into its matrices of the model's width (queries, keys,
values, feed-forward); what attention and the feed-forward hand on inside is left out. Dettmers et
al., 2022 (arXiv:2208.07339), section 4.
"""

from typing import NamedTuple

import numpy as np

LARGE, LAYERS, POSITIONS = 6.0, 0.25, 0.06


class Report(NamedTuple):
  """features: the outliers. layers, positions: shares, of every feature."""

  features: list[int]
  layers: np.ndarray
  positions: np.ndarray


class Seen:
  """Gathers over layers and chunks of rows."""

  def __init__(self, width: int):
    self._layers: dict[int, np.ndarray] = {}
    self._chunks: dict[int, np.ndarray] = {}
    self._tokens: dict[int, int] = {}
    self._none = np.zeros(width, bool)

  def add(self, depth: int, chunk: int, above_BTD: np.ndarray, real_BT: np.ndarray) -> None:
    """above_BTD: where |x| >= LARGE in this layer; real_BT: tokens that are no padding."""
    above = above_BTD[real_BT]
    self._layers[depth] = self._layers.get(depth, self._none) | above.any(axis=0)
    before = self._chunks.get(chunk)
    self._chunks[chunk] = above if before is None else before | above
    self._tokens[chunk] = len(above)

  def report(self) -> Report:
    layers = np.mean([*self._layers.values()], axis=0)
    tokens = max(1, sum(self._tokens.values()))
    positions = np.sum([c.sum(axis=0) for c in self._chunks.values()], axis=0) / tokens
    wanted = (layers >= LAYERS) & (positions >= POSITIONS)
    return Report(np.flatnonzero(wanted).tolist(), layers, positions)
