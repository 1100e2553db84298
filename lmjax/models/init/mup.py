"""Maximal update parameterization for Adam-like optimizers: the best learning rate found at
`base_width` holds at every width.

With m = fan_in / (the same fan_in at base_width), for matrices inside layers:
  initial standard deviation sigma / sqrt(m), learning rate x 1/m; embeddings, norms and biases as
  they are; logits x base_width / width (tied tables included, hence no change of their own initial
  values or rates); attention scaled by sqrt(base_head_dim) / head_dim instead of 1/sqrt(head_dim).
Yang et al., 2022 (Tensor Programs V, arXiv:2203.03466), table 8, in the form where multipliers
carry the output layer. An untied unembedding learns at full rate under its multiplier, as in that
table. Hidden sizes are taken to grow in proportion to the width.
"""

import dataclasses
import math

from lmjax.models.init import _base
from lmjax.registry import register


@register('init')
@dataclasses.dataclass(frozen=True)
class Mup(_base.Init):
  """Initial values and learning-rate factors by width."""

  base_width: int = 128
  sigma: float = 0.02
  base_head_dim: int = 64

  @staticmethod
  def check(**values):
    _base.positive(**values)

  @property
  def ratio(self) -> float:
    return self.width / self.base_width

  def std(self, fact, shape):
    if fact.role == 'residual':
      return self.sigma / math.sqrt(2 * self.depth * self.ratio)
    return self.sigma / math.sqrt(self.ratio) if fact.role == 'hidden' else self.sigma

  def lr(self, fact, shape):
    return 1 / self.ratio if fact.role in ('hidden', 'residual') else 1.0

  def logit_scale(self):
    return 1 / self.ratio

  def attention_scale(self, head_dim):
    return math.sqrt(self.base_head_dim) / head_dim
