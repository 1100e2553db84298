"""What an objective of several networks keeps: the model, as its architecture takes it.

For runs that begin from `electra`, whose generator is thrown away; for an objective of one network
it changes nothing.
"""

import dataclasses
from typing import Any

from lmjax.registry import register


@register('surgery')
@dataclasses.dataclass(frozen=True)
class Discriminator:
  """The variables of the old run's own model."""

  run: str

  def __call__(self, old, new, rng) -> dict[str, Any]:
    del new, rng
    params, vars = dict(old.variables), {}
    params, vars = old.network(params.pop('params'), params)
    return dict(params=params, **vars)
