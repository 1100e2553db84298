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
  'embed': ('data', 'sequence'),
  'heads': ('tensor',),
  'kv_heads': ('tensor',),
  'head_dim': (),
  'mlp': ('tensor',),
  'rank': (),
  'vocab': ('tensor', 'stage'),
  'position': (),
  'layers': ('stage',),
  'expert': ('expert',),
}
GATHERED = ('embed',)
# Left whole where a mesh axis does not divide them: single tokens in decoding, and fewer heads of
# keys than devices, which each device then holds (Shazeer, 2019, arXiv:1911.02150).
LOOSE = ('time', 'kv_heads')


def mesh():
  return jax.sharding.get_abstract_mesh()


def is_explicit() -> bool:
  m = mesh()
  return not m.empty and any(t == AxisType.Explicit for t in m.axis_types)


def spec(names, gathered: bool = False, shape=None) -> P:
  """The partition spec of an array with these logical axes on the current mesh. With its shape,
  axes of LOOSE that do not divide stay whole.

  Raises ValueError for an unknown name or when two axes claim one mesh axis.
  """
  m, used, out = mesh(), {}, []
  manual = {a for a, t in zip(m.axis_names, m.axis_types) if t == AxisType.Manual}
  for i, name in enumerate(names):
    if name is not None and name not in RULES:
      raise ValueError(f'no sharding rule for the axis {name!r}; known axes: {", ".join(RULES)}')
    wanted = () if name is None or (gathered and name in GATHERED) else RULES[name]
    axes = tuple(a for a in wanted if a in m.axis_names and a not in manual)
    if name in LOOSE and shape is not None and shape[i] % math.prod(m.shape[a] for a in axes):
      axes = ()
    for a in axes:
      if a in used:
        raise ValueError(f'axes {used[a]!r} and {name!r} of {names} both claim the mesh axis {a!r}')
      used[a] = name
    out.append(axes if len(axes) > 1 else axes[0] if axes else None)
  return P(*out)


def axes_of(entry) -> tuple[str, ...]:
  """The mesh axes of one entry of a spec."""
  return (entry,) if isinstance(entry, str) else tuple(entry or ())


def shard(x, *names):
  """Places x. `names` has one logical axis (or None) per dimension."""
  if mesh().empty:
    return x
  assert len(names) == x.ndim, (names, x.shape)
  place = jax.sharding.reshard if is_explicit() else jax.lax.with_sharding_constraint
  return place(x, spec(names, shape=x.shape))


def gather(w, names):
  """A parameter as its use needs it: the ZeRO-3 axis gathered, tensor axes still sharded."""
  if mesh().empty:
    return w
  if is_explicit():
    return jax.sharding.reshard(w, spec(names, gathered=True, shape=w.shape))
  return _gathered(w, tuple(names))


def _whole(w, names):
  return jax.lax.with_sharding_constraint(w, spec(names, gathered=True, shape=w.shape))


# The transpose of a constraint is the constraint again: gradients would be whole before each device
# takes its part of them. The barrier keeps libtpu 0.0.42 from failing ("RET_CHECK ...
# while_loop_all_reduce_code_motion") at sums in float32 that are rounded to bfloat16 and then added
# up over micro-batches.
_gathered = jax.custom_vjp(_whole, nondiff_argnums=(1,))
_gathered.defvjp(
  lambda w, names: (_whole(w, names), None),
  lambda names, _, g: (jax.lax.optimization_barrier(shard(g, *names)),),
)


def sharing(sizes, *names: str) -> int:
  """Over how many devices of a mesh with these axis sizes an array with these logical axes is cut;
  without names, the rows of a batch.
  """
  return math.prod(sizes.get(a, 1) for name in names or ('batch',) for a in RULES[name])


def automatic(f, out):
  """f, on an explicit mesh with the partitioner in charge inside: of sums over sharded axes, axes
  folded into one, decompositions. `out`: specs of what it gives.
  """
  return jax.sharding.auto_axes(f, out_sharding=out) if is_explicit() else f


def product_axes(lead: int, out_names) -> tuple:
  """Logical axes of a product whose first `lead` axes are those of x."""
  return ('batch', 'time', *(None,) * lead)[:lead] + tuple(out_names)


def placed(product, lead: int, out_names):
  """product(x, ...), its inside left to the partitioner; what it gives lies as products of full
  matrices do (`nn.params.contract`).
  """
  if mesh().empty:
    return product
  place = spec(product_axes(lead, out_names), gathered=True)
  if is_explicit():
    return automatic(product, place)
  return lambda *args: jax.lax.with_sharding_constraint(product(*args), place)


def held(names, shape) -> int:
  """Elements that a device holds of an activation with these axes, about."""
  cuts = math.prod(mesh().shape[a] for entry in spec(names, shape=shape) for a in axes_of(entry))
  return math.prod(shape) // cuts


def by_hand(f, in_specs, out_specs):
  """f of the pieces on each device, collectives written out, over all axes that the partitioner has
  charge of here.
  """
  axes = {a for a, t in zip(mesh().axis_names, mesh().axis_types) if t != AxisType.Manual}
  return jax.shard_map(f, in_specs=in_specs, out_specs=out_specs, axis_names=axes, check_vma=False)


def pieces(mesh, names, shape, path: str = '') -> tuple[P, tuple[int, ...]]:
  """The spec of a parameter on a (concrete or abstract) mesh and the shape of one piece; refuses an
  axis that does not divide.
  """
  with jax.sharding.use_abstract_mesh(getattr(mesh, 'abstract_mesh', mesh)):
    s = spec(names, shape=shape)
  out = []
  for name, size, axes in zip(names, shape, s):
    axes = axes_of(axes)
    n = math.prod(mesh.shape[a] for a in axes)
    if size % n:
      raise ValueError(
        f'{path}: axis {name!r} of size {size} does not divide over {n} devices, '
        + ' x '.join(f'config.mesh.{a}={mesh.shape[a]}' for a in axes)
      )
    out.append(size // n)
  return s, tuple(out)
