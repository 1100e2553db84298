"""Full matrices from masked ones: the mask goes, what it kept stays, pruned entries begin at 0.

  kernel = W * M

For runs with `config.model.linear='dense()'` that begin from one with `spdf(...)`, whose kernels
have the names and shapes of full ones. M is applied, since optimizers that mix entries (muon, soap,
galore) write into pruned places of W, which the model never saw; but not where the old run used W
without it (`spdf(..., dense=True)`). The optimizer begins anew. Thangarasa et al., 2023
(arXiv:2303.10464).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from lmjax.registry import register

STATES = ('vars', 'backward')  # what parts of a model remember


@register('surgery')
@dataclasses.dataclass(frozen=True)
class Densify:
  """The old parameters where they were kept, without the masks."""

  run: str

  def __call__(self, old, new, rng) -> dict[str, Any]:
    del rng
    names = lambda stage: jax.tree.structure(stage.variables['params'])
    if names(old) != names(new) or not masks(old) or masks(new):
      raise ValueError(
        f'densify: config.model.linear={old.model.scheme.linear} of {self.run} and '
        f'{new.model.scheme.linear} here: a mask for matrices there and none here, as of '
        'spdf(...) and dense(), are expected, and other parameters of the same names'
      )
    params = old.variables['params']
    if not dict(old.model.scheme.linear.args).get('dense', False):
      params = masked(params, old.variables['vars'])
    states = {k: unmasked(old.variables[k]) for k in STATES if k in old.variables}
    return {**new.variables, **{k: v for k, v in states.items() if v}, 'params': params}


def masks(stage) -> int:
  """How many matrices have a mask."""
  found = jax.tree_util.tree_leaves_with_path(stage.variables.get('vars', {}))
  return sum(path[-1].key == 'mask' for path, _ in found)


def masked(params: dict, vars: dict) -> dict:
  """The parameters, 0 where a mask beside them says so."""
  inner = {k: masked(params[k], v) for k, v in vars.items() if isinstance(v, dict) and k in params}
  if 'mask' not in vars:
    return {**params, **inner}
  kernel, mask = params['kernel'], vars['mask']
  if mask.ndim > kernel.ndim:  # a shared segment: one matrix, the same mask in every round
    assert bool(jnp.all(mask == mask[:1]))
    mask = mask[0]
  return {**params, **inner, 'kernel': jnp.where(mask, kernel, jnp.zeros_like(kernel))}


def unmasked(tree: dict) -> dict:
  """The tree without masks, and without what is empty then."""
  kept = {k: unmasked(v) if isinstance(v, dict) else v for k, v in tree.items() if k != 'mask'}
  return {k: v for k, v in kept.items() if not (isinstance(v, dict) and not v)}
