"""Only some parameters are trained: all other updates become 0.

  u <- u where the parameter's path matches one of `names`, else 0

`names` are patterns of paths as `--plan` prints them, separated by commas: "embed/unembed",
"segment_0/*/norm*". Stands behind whatever makes or decays updates, at the end of the chain. A
pattern that matches nothing is refused. Moments of the others are kept all the same.

Linear probes and fine-tuning of a head on a frozen body, as in Godey et al., 2023
(arXiv:2309.08351, section 5.3).
"""

import fnmatch

import jax
import jax.numpy as jnp
import optax

from lmjax.parallel import facts as facts_lib
from lmjax.registry import register


@register('optim', moments=False)
def train_only(names: str, *, facts) -> optax.GradientTransformationExtraArgs:
  """Updates of the parameters that match; ValueError for a pattern that matches none."""
  patterns = [n.strip() for n in names.split(',')]
  paths = jax.tree_util.tree_map_with_path(
    lambda path, _: '/'.join(str(k.key) for k in path), facts, is_leaf=facts_lib.is_fact
  )
  known = jax.tree.leaves(paths)
  for p in patterns:
    if not fnmatch.filter(known, p):
      raise ValueError(
        f'train_only.names={names!r}: no parameter matches {p!r}; paths as --plan prints them are '
        f'expected, such as {known[0]!r}'
      )
  kept = jax.tree.map(lambda path: any(fnmatch.fnmatchcase(path, p) for p in patterns), paths)

  def update(updates, state, params=None, **extra):
    del params, extra
    out = jax.tree.map(lambda k, u: u if k else jnp.zeros_like(u), kept, updates)
    return out, state

  return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
