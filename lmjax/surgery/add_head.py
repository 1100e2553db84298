"""A headless model gets an output matrix: a copy of its embedding, trained apart from then on.

  unembed = table;  all else as it was

For runs that begin from an objective without a head (`headless_cwt`) or with a tied one: this run's
`config.model.embed` is `untied(...)` of as many rows and the same scale. An embedding with more
than a table (a norm, a bias over the vocabulary, a projection) has no such form and is refused.
Godey et al., 2023 (arXiv:2309.08351, section 5.3), who then fine-tune the whole model for 10,000
steps; the part `train_only` of the optimizer trains the matrix alone (a probe).
"""

import dataclasses
from typing import Any

from lmjax.registry import register


@register('surgery')
@dataclasses.dataclass(frozen=True)
class AddHead:
  """The table, twice."""

  run: str

  def __call__(self, old, new, rng) -> dict[str, Any]:
    del rng
    embed, wanted = old.variables['params']['embed'], new.variables['params']['embed']
    if (
      set(embed) != {'table'}
      or set(wanted) != {'table', 'unembed'}
      or looked_up(old.model.embed) != looked_up(new.model.embed)
    ):
      raise ValueError(
        f'add_head: config.model.embed={old.model.embed} of {self.run} and {new.model.embed} here: '
        'one table and nothing beside it there, as of tied(), a matrix of its own here, as of '
        'untied(), and the same scale and multiple_of are expected'
      )
    grown = {'table': embed['table'], 'unembed': embed['table']}
    return {**old.variables, 'params': {**old.variables['params'], 'embed': grown}}


def looked_up(part) -> dict[str, str]:
  """What else an embedding does with its table: its arguments, but for a bias, which is one of the
  parameters.
  """
  return {k: str(v) for k, v in part.args if k != 'bias'}
