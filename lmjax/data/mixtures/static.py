"""Constant weights: those of the sum ('0.7*a() + 0.3*b()'), or in proportion to tokens where none
is written.
"""

import dataclasses

import numpy as np

from lmjax.data.mixtures import _weights
from lmjax.registry import register


@register('mixture')
@dataclasses.dataclass(frozen=True)
class Static:
  """The weights that the config writes, unchanged throughout."""

  def init(self, names, weights, tokens):
    found = _weights.given(names, weights)
    sizes = _weights.sizes(names, tokens)
    return dict(weights=_weights.normalised(sizes) if found is None else found)

  def update(self, state, observed):
    del observed
    return state

  def weights(self, state) -> np.ndarray:
    return state['weights']
