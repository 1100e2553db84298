"""Parts with facts that no registered part has, to see `build` refuse them."""

import dataclasses
from typing import Any

from lmjax.models.mixers import gqa
from lmjax.objectives import clm
from lmjax.registry import register


@register('mixer', segments=False)
class Blind(gqa.Gqa):
  """Attention that says it cannot keep documents apart."""

  head_dim: int = 8


@register('objective', couples='global', lookahead=1, causal=True)
@dataclasses.dataclass(frozen=True)
class Coupled(clm.Clm):
  """Says that its loss depends on all rows of a batch."""

  model: Any
