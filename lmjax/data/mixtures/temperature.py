"""Weights from sizes, flattened: p_i = n_i^alpha / sum_j n_j^alpha, n_i the tokens of source i.

alpha = 1 is proportional to size, alpha = 0 uniform; small sources are raised in between. In the
other convention, alpha = 1 / T.
Defaults in the literature: 0.5 (XLM, Lample and Conneau, 2019, arXiv:1901.07291, section 3.1), 0.3
(XLM-R; mT5, Xue et al., 2021, arXiv:2010.11934, section 3.1).
"""

import dataclasses

import numpy as np

from lmjax.data.mixtures import _weights
from lmjax.registry import register


@register('mixture')
@dataclasses.dataclass(frozen=True)
class Temperature:
  """Weights proportional to tokens to the power alpha; the config writes none."""

  alpha: float = 0.5

  @staticmethod
  def check(alpha):
    if not 0 <= alpha <= 1:
      raise ValueError(f'alpha={alpha}: a number from 0 (uniform) to 1 (proportional) is expected')

  def init(self, names, weights, tokens):
    written = [n for n, w in zip(names, weights, strict=True) if w is not None]
    if written:
      raise ValueError(
        f'temperature() takes its weights from sizes, but source {written[0]} has one; remove it '
        'or use static()'
      )
    log = self.alpha * np.log(_weights.sizes(names, tokens))
    return dict(weights=_weights.normalised(np.exp(log - log.max())))

  def update(self, state, observed):
    del observed
    return state

  def weights(self, state) -> np.ndarray:
    return state['weights']
