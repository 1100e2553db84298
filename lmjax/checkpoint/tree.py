"""Arrays of a checkpoint: their names, what is recorded of them, their way into and out of orbax.

On disk a state is nested dictionaries of arrays, whatever classes held it in memory.
"""

import math
from typing import Any, Mapping

import jax
import numpy as np
import orbax.checkpoint as ocp


def named_leaves(tree: Any) -> dict[str, Any]:
  """Leaves of any pytree by path, such as `params/block/kernel`.

  A name depends on field names, keys and indices, never on the classes, so that a checkpoint can be
  read without them. '/' and '%' within a key are written %2F and %25. Raises ValueError when two
  leaves would get the same name.
  """
  out = {}
  for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
    name = '/'.join(_key_text(k) for k in path)
    if not path or name in out:
      raise ValueError(f'the state has two leaves named {name!r}, or no names at all')
    out[name] = leaf
  return out


def _key_text(key: Any) -> str:
  text = next(str(getattr(key, a)) for a in ('name', 'key', 'idx') if hasattr(key, a))
  return text.replace('%', '%25').replace('/', '%2F') or '%'


def plain_key(text: str) -> str:
  """A key as it was before it became part of a name."""
  return '' if text == '%' else text.replace('%2F', '/').replace('%25', '%')


def empties(tree: Any) -> list[str]:
  """Paths of the dictionaries without any leaf below them, so that `{}` survives a read without
  classes.
  """
  out = []

  def walk(node, path):
    if isinstance(node, Mapping):
      if not node:
        out.append('/'.join(path))
      for k, v in node.items():
        walk(v, (*path, _key_text(jax.tree_util.DictKey(k))))

  # One level of the state (a dataclass) is opened by the pytree registry, the rest are
  # dictionaries.
  for path, node in jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: x is not tree)[0]:
    walk(node, tuple(_key_text(k) for k in path))
  return out


def describe(leaf: Any) -> dict[str, Any]:
  """Shape and dtype of an array, an abstract array or a number; typed PRNG keys add their
  implementation.
  """
  leaf = leaf if hasattr(leaf, 'dtype') else np.asarray(leaf)
  out = {'shape': list(leaf.shape), 'dtype': str(leaf.dtype)}
  if is_key(leaf) and not isinstance(leaf, jax.ShapeDtypeStruct):
    out['impl'] = str(jax.random.key_impl(leaf))
  return out


def is_key(leaf: Any) -> bool:
  return hasattr(leaf, 'dtype') and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def show(entry: Mapping[str, Any]) -> str:
  return f'{entry["dtype"]}[{",".join(map(str, entry["shape"]))}]'


def nbytes(entry: Mapping[str, Any]) -> int:
  """Bytes of a described array; of a typed key, of its data. Raises ValueError where the dtype is
  not known here.
  """
  count = math.prod(entry['shape'])
  try:
    if 'impl' in entry:
      data = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0, impl=entry['impl'])))
      return count * data.size * data.dtype.itemsize
    return count * np.dtype(entry['dtype']).itemsize
  except (TypeError, ValueError) as e:
    raise ValueError(f'an array of dtype {entry["dtype"]!r} is not known here ({e})') from None


def differences(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
  """One sentence for each array whose presence, shape or dtype differs."""
  out = []
  for name in sorted(saved.keys() | wanted.keys()):
    if name not in wanted:
      out.append(f'{name} is {show(saved[name])} in the checkpoint and absent here')
    elif name not in saved:
      out.append(f'{name} is {show(wanted[name])} here and absent from the checkpoint')
    elif show(saved[name]) != show(wanted[name]):
      out.append(f'{name} is {show(saved[name])} in the checkpoint and {show(wanted[name])} here')
  return out


def find(tree: Mapping[str, Any], name: str) -> Any:
  """The leaf of nested dictionaries by its name."""
  for key in name.split('/'):
    tree = tree[key]
  return tree


def nest(flat: Mapping[str, Any], *, key: Any = str) -> dict[str, Any]:
  """Named leaves as nested dictionaries; `key` turns each part of a name into its key."""
  out: dict[str, Any] = {}
  for name, value in flat.items():
    *parents, last = map(key, name.split('/'))
    node = out
    for p in parents:
      node = node.setdefault(p, {})
    node[last] = value
  return out


def storable(leaf: Any) -> Any:
  """What orbax can store: typed keys as their data, numbers as arrays; host arrays it copies."""
  if is_key(leaf):
    return jax.random.key_data(leaf)
  return leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)


def restore_args(leaf: Any, entry: Mapping[str, Any]) -> ocp.RestoreArgs:
  """Where and as what orbax restores the leaf that `entry` describes."""
  dtype = None if 'impl' in entry else np.dtype(entry['dtype'])
  if dtype is not None and jax.dtypes.canonicalize_dtype(dtype) != dtype:
    return ocp.RestoreArgs(restore_type=np.ndarray)  # 64 bits, which JAX would cut to 32
  sharding = getattr(leaf, 'sharding', None)
  if sharding is None:
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  shape = None if 'impl' in entry else tuple(entry['shape'])
  return ocp.ArrayRestoreArgs(sharding=sharding, global_shape=shape)


def opened(value: Any, entry: Mapping[str, Any]) -> Any:
  return jax.random.wrap_key_data(value, impl=entry['impl']) if 'impl' in entry else value
