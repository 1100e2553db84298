"""Normal(0, sigma) everywhere; matrices that write to the residual stream use sigma / sqrt(2 N), N
layers.

Radford et al., 2019 (GPT-2, section 2.3) with sigma 0.02; positions 0.02 as in nanoGPT (OpenAI's
release used 0.01).
"""

import dataclasses
import math

from lmjax.models.init import _base
from lmjax.registry import register


@register('init')
@dataclasses.dataclass(frozen=True)
class Gpt2(_base.Init):
  """sigma, and sigma / sqrt(2 N) for residual writers."""

  sigma: float = 0.02

  @staticmethod
  def check(sigma):
    _base.positive(sigma=sigma)

  def std(self, fact, shape):
    return self.sigma / math.sqrt(2 * self.depth) if fact.role == 'residual' else self.sigma
