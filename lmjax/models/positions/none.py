"""No position at all: a causal model can count by its mask alone (NoPE; Kazemnejad et al., 2023,
arXiv:2305.19466).
"""

from lmjax.models.positions import _base
from lmjax.registry import register


@register('position', relative=True)
class NoPosition(_base.Position):
  """Nothing."""
