"""The state of an optimizer, grown as the gradients of its parameters are."""

from typing import Any, Mapping

import jax
import numpy as np

from lmjax.surgery import _grow_fits

FIRST, SECOND = ('m', 'mu', 'trace'), ('v', 'nu', 'h')  # means of gradients, and of their squares


def at(tree: Any, keys) -> Any:
  """A leaf of nested dictionaries, or None."""
  for key in keys:
    if not isinstance(tree, Mapping) or key not in tree:
      return None
    tree = tree[key]
  return tree


def carried(plan: dict, old, new, old_opt: Any, new_opt: Any) -> Any:
  """`new_opt` with what `old_opt` (nested dictionaries) knows. A leaf that lies under the keys of a
  parameter and has its shape grows like it; integer counters are kept, what was measured begins
  anew. Raises ValueError for anything else.
  """
  before, after = (_grow_fits.flat(s.variables['params']) for s in (old, new))

  def one(path, like):
    keys = tuple(text(k) for k in path)
    value, where = at(old_opt, keys), 'the optimizer state ' + '/'.join(keys)
    if value is None:
      raise ValueError(
        f'{where} is absent there: config.optim={old.config["optim"]} there and '
        f'{new.config["optim"]} here; optimizer="carry" expects the same parts'
      )
    param = next((keys[n:] for n in range(1, len(keys)) if keys[n:] in plan), None)
    if param is None:
      if 'metrics' in keys[:-1]:
        return like
      if np.ndim(value) == 0 and np.issubdtype(value.dtype, np.integer):
        return value
    elif value.shape == before[param].shape and like.shape == after[param].shape:
      field = keys[len(keys) - len(param) - 1]
      if field in FIRST + SECOND:
        return plan[param].moment(value, 1 if field in FIRST else 2)
    raise ValueError(
      f'{where} is no mean of gradients or of their squares, and how it grows is not known; '
      'optimizer="reset" is expected'
    )

  return jax.tree_util.tree_map_with_path(one, new_opt)


def text(key) -> str:
  """A key of a path as checkpoints write it."""
  return next(str(getattr(key, a)) for a in ('name', 'key', 'idx') if hasattr(key, a))
