"""Placing arrays on a mesh by axis names. Without a mesh every function here is the identity.

On an auto mesh a placement is a constraint for the partitioner, on an explicit mesh it is a
reshard: the same model runs in all three ways. `RULES` maps every logical axis to mesh axes; a name
that it does not know is an error.
"""

import math

import jax
from jax.sharding import AxisType, PartitionSpec as P

RULES: dict[str, tuple[str, ...]] = {
  # activations
  'batch': ('replica', 'data', 'expert'),
  'time': ('sequence',),
  'width': (),
  # parameters; `embed` is the axis that ZeRO-3 shards and each use gathers
  'embed': ('data',),
  'heads': ('tensor',),
  'kv_heads': ('tensor',),
  'head_dim': (),
  'mlp': ('tensor',),
  'rank': (),
  'vocab': ('tensor',),
  'position': (),
  'layers': (),
  'expert': ('expert',),
}
GATHERED = ('embed',)


def mesh():
  return jax.sharding.get_abstract_mesh()


def is_explicit() -> bool:
  m = mesh()
  return not m.empty and any(t == AxisType.Explicit for t in m.axis_types)


def spec(names, gathered: bool = False) -> P:
  """The partition spec of an array with these logical axes on the current mesh.

  Raises ValueError for an unknown name or when two axes claim one mesh axis.
  """
  m, used, out = mesh(), {}, []
  manual = {a for a, t in zip(m.axis_names, m.axis_types) if t == AxisType.Manual}
  for name in names:
    if name is not None and name not in RULES:
      raise ValueError(f'no sharding rule for the axis {name!r}; known axes: {", ".join(RULES)}')
    wanted = () if name is None or (gathered and name in GATHERED) else RULES[name]
    axes = tuple(a for a in wanted if a in m.axis_names and a not in manual)
    for a in axes:
      if a in used:
        raise ValueError(f'axes {used[a]!r} and {name!r} of {names} both claim the mesh axis {a!r}')
      used[a] = name
    out.append(axes if len(axes) > 1 else axes[0] if axes else None)
  return P(*out)


def shard(x, *names):
  """Places x. `names` has one logical axis (or None) per dimension."""
  if mesh().empty:
    return x
  assert len(names) == x.ndim, (names, x.shape)
  place = jax.sharding.reshard if is_explicit() else jax.lax.with_sharding_constraint
  return place(x, spec(names))


def gather(w, names):
  """A parameter as its use needs it: the ZeRO-3 axis gathered, tensor axes still sharded."""
  if mesh().empty:
    return w
  place = jax.sharding.reshard if is_explicit() else jax.lax.with_sharding_constraint
  return place(w, spec(names, gathered=True))


def pieces(mesh, names, shape, path: str = '') -> tuple[P, tuple[int, ...]]:
  """The spec of a parameter on a (concrete or abstract) mesh and the shape of one piece; refuses an
  axis that does not divide.
  """
  with jax.sharding.use_abstract_mesh(getattr(mesh, 'abstract_mesh', mesh)):
    s = spec(names)
  out = []
  for name, size, axes in zip(names, shape, s):
    axes = (axes,) if isinstance(axes, str) else axes or ()
    n = math.prod(mesh.shape[a] for a in axes)
    if size % n:
      raise ValueError(
        f'{path}: axis {name!r} of size {size} does not divide over {n} devices, '
        + ' x '.join(f'config.mesh.{a}={mesh.shape[a]}' for a in axes)
      )
    out.append(size // n)
  return s, tuple(out)
