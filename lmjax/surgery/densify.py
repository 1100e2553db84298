"""Full matrices from masked ones: the mask goes, the parameters stay, pruned entries begin at 0.

For runs with `config.model.linear='dense()'` that begin from one with `spdf(...)`, whose kernels
have the names and shapes of full ones. The optimizer begins anew. Thangarasa et al., 2023
(arXiv:2303.10464).
"""

import dataclasses
from typing import Any

import jax

from lmjax.registry import register


@register('surgery')
@dataclasses.dataclass(frozen=True)
class Densify:
  """The old parameters, without what only masks needed."""

  run: str

  def __call__(self, old, new, rng) -> dict[str, Any]:
    del rng
    names = lambda stage: jax.tree.structure(stage.variables['params'])
    if names(old) != names(new):
      raise ValueError(
        f'densify: config.model.linear={old.config["model"]["linear"]} of {self.run} and '
        f'{new.config["model"]["linear"]} here have other parameters; spdf(...) there and dense() '
        'here are expected'
      )
    return {**new.variables, 'params': old.variables['params']}
