"""What each tagged tensor costs: bytes on one device if it is kept, FLOPs if it is made again.

Both are read from the traced loss of one micro-batch, so that they follow the model whatever its
parts are. Bytes: every tag found, times the lengths of the loops around it, cut as the mesh cuts
it: by the sharding that an explicit mesh gives it, by the logical axes of `remat.NAMES` on an auto
mesh, and not further inside a `shard_map`, whose arrays are pieces already.

FLOPs: products of matrices in the gradient of the loss where every name but one is kept, less those
where all are; so much is computed again if that name alone is given up. Names stand in for each
other: giving up two may cost more than the sum. Products inside Pallas kernels are not seen.
"""

import collections
import math
from typing import Callable, Iterator, NamedTuple

import jax
from jax.extend import core
from jax.interpreters import partial_eval
from jax.sharding import AxisType, NamedSharding

from lmjax import build as build_lib
from lmjax.kernels import cost
from lmjax.parallel import jaxprs
from lmjax.parallel import remat
from lmjax.parallel import shard

KEPT, AGAIN, AWAY = 'kept', 'computed again', 'offloaded'
_LAYERS = ('checkpoint', 'remat', 'remat2')  # names of the primitive in JAX


class Row(NamedTuple):
  """One name: how many tensors over all layers, their bytes on one device if all are kept, what
  becomes of them, and the FLOPs on one device that making them again costs.
  """

  name: str
  tensors: int
  bytes: float
  fate: str
  flops: float


class _Tag(NamedTuple):
  name: str
  times: int
  bytes: float  # of one, on one device
  first: bool  # an input of what is computed again, and therefore kept


def rows(run: build_lib.Run, mesh=None) -> list[Row]:
  """A row for each name and fate that the layers have, in the order of `remat.NAMES`; bytes and
  FLOPs of one micro-batch.

  Args:
    mesh: concrete or abstract; None for one device.
  """
  choice = remat.read(run.config['model']['remat'])
  if not remat.policy(run.config['model']['remat'])[0]:
    found = [r._replace(fate=KEPT) for r in rows(with_remat(run, 'full'), mesh)]
    return [
      _merged([r for r in found if r.name == n]) for n in remat.NAMES if n in map(_name, found)
    ]
  jaxpr, sums = trace(run, mesh), collections.defaultdict(lambda: [0, 0.0])
  for t in _tags(jaxpr, mesh):
    fate = KEPT if t.first or t.name in choice.kept else AGAIN
    entry = sums[t.name, AWAY if t.name in choice.offloaded else fate]
    entry[0], entry[1] = entry[0] + t.times, entry[1] + t.times * t.bytes
  present = [n for n in remat.NAMES if any(n == name for name, _ in sums)]
  costs = _costs(jaxpr, mesh, present)
  return [
    Row(n, *sums[n, fate], fate, costs[n])
    for n in present
    for fate in (KEPT, AWAY, AGAIN)
    if (n, fate) in sums
  ]


def again(run: build_lib.Run, mesh=None) -> float:
  """FLOPs on one device that the backward pass of one micro-batch computes again: products of
  matrices alone.
  """
  on, policy = remat.policy(run.config['model']['remat'])
  if not on:
    return 0.0
  jaxpr = trace(run, mesh)
  everything = jax.checkpoint_policies.everything_saveable
  return _step(jaxpr, mesh, policy) - _step(jaxpr, mesh, everything)


def with_remat(run: build_lib.Run, text: str) -> build_lib.Run:
  """The same run with another `config.model.remat`."""
  config = run.config
  return build_lib.build(config | dict(model=config['model'] | dict(remat=text)))


def trace(run: build_lib.Run, mesh=None):
  """The jaxpr of the loss of one micro-batch, a function of the parameters and more."""
  micro = run.config['micro_batches']
  piece = lambda s: jax.ShapeDtypeStruct((s.shape[0] // micro, *s.shape[1:]), s.dtype)
  batch = jax.tree.map(piece, run.batch_shapes())
  params, vars = run.state_shapes.params, run.state_shapes.vars
  key = jax.eval_shape(lambda: jax.random.key(0))
  with _on(mesh), run.choices():
    if mesh is not None and AxisType.Explicit in _abstract(mesh).axis_types:
      places = run.placements(mesh)
      specs = lambda tree: jax.tree.map(lambda p: p.spec, tree, is_leaf=build_lib.is_placement)
      rows_of = lambda s: shard.spec(('batch',) + (None,) * (len(s.shape) - 1))
      params = _placed(params, specs(places.params), mesh)
      vars = _placed(vars, specs(places.vars), mesh)
      batch = _placed(batch, jax.tree.map(rows_of, batch), mesh)
    loss = lambda *args: run.objective.loss(*args).sum
    return jax.make_jaxpr(loss)(params, vars, batch, key)


def _abstract(mesh):
  return getattr(mesh, 'abstract_mesh', mesh)


def _on(mesh):
  empty = jax.sharding.AbstractMesh((), ())
  return jax.sharding.use_abstract_mesh(empty if mesh is None else _abstract(mesh))


def _placed(shapes, specs, mesh):
  def one(s, spec):
    place = NamedSharding(_abstract(mesh), spec)
    return jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place)

  return jax.tree.map(one, shapes, specs)


def _name(row: Row) -> str:
  return row.name


def _merged(found: list[Row]) -> Row:
  """Rows of one name as one."""
  sums = sum(r.tensors for r in found), sum(r.bytes for r in found)
  return found[0]._replace(tensors=sums[0], bytes=sums[1])


# ---------------------------------------------------------------- reading a jaxpr


def _times(eqn) -> int:
  return eqn.params['length'] if eqn.primitive.name == 'scan' else 1


def _tags(closed, mesh) -> Iterator[_Tag]:
  """Every tag below, with how often it is met."""

  def walk(jaxpr, times: int, layers: bool, manual: frozenset) -> Iterator[_Tag]:
    inputs = set(jaxpr.invars) if layers else ()
    for eqn in jaxpr.eqns:
      if eqn.primitive.name == 'name' and eqn.params['name'] in remat.NAMES:
        size = _bytes(eqn.params['name'], eqn.outvars[0].aval, mesh, manual)
        yield _Tag(eqn.params['name'], times, size, eqn.invars[0] in inputs)
        continue
      within = manual | frozenset(eqn.params.get('manual_axes', ()))
      bodies = [
        list(walk(j, times * _times(eqn), eqn.primitive.name in _LAYERS, within))
        for _, j in jaxprs.inner(eqn)
      ]
      if eqn.primitive.name == 'cond':  # one of its branches is run
        bodies = [max(bodies, key=lambda found: sum(t.times * t.bytes for t in found))]
      for found in bodies:
        yield from found

  yield from walk(closed.jaxpr, 1, False, frozenset())


def _bytes(name: str, aval, mesh, manual: frozenset) -> float:
  """Bytes of a tagged array on one device."""
  whole = math.prod(aval.shape) * aval.dtype.itemsize
  if mesh is None:
    return whole
  mesh = _abstract(mesh)
  if AxisType.Explicit in aval.sharding.mesh.axis_types:
    return math.prod(aval.sharding.shard_shape(aval.shape)) * aval.dtype.itemsize
  with jax.sharding.use_abstract_mesh(mesh):
    spec = shard.spec(remat.NAMES[name])
  for size, entry in zip(aval.shape, spec):
    n = math.prod(mesh.shape[a] for a in shard.axes_of(entry) if a not in manual)
    whole /= 1 if size % n else n  # fewer heads of keys than devices lie on all of them
  return whole


def _products(jaxpr, cut: int = 1) -> float:
  """FLOPs of the products in a jaxpr over all devices; its arrays are pieces of 1/cut."""
  total = 0.0
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == 'dot_general':
      total += cut * jaxprs.multiplied(eqn)
    elif eqn.primitive.name == 'pallas_call':
      total += cut * cost.of(eqn).flops
    else:
      sizes = dict(getattr(eqn.params.get('mesh'), 'shape', {}))
      pieces = math.prod(sizes.get(a, 1) for a in eqn.params.get('manual_axes', ()))
      found = [_products(j, cut * pieces) for _, j in jaxprs.inner(eqn)] or [0.0]
      total += _times(eqn) * (max(found) if eqn.primitive.name == 'cond' else sum(found))
  return total


def _with_policy(jaxpr, policy: Callable):
  """The jaxpr with another policy for whatever holds tags and is computed again."""

  def changed(v):
    if isinstance(v, (tuple, list)):
      return type(v)(map(changed, v)) if any(isinstance(x, _PROGRAMS) for x in v) else v
    if isinstance(v, core.ClosedJaxpr):
      return core.ClosedJaxpr(_with_policy(v.jaxpr, policy), v.consts)
    return _with_policy(v, policy) if isinstance(v, core.Jaxpr) else v

  def one(eqn):
    params = {k: changed(v) for k, v in eqn.params.items()}
    return eqn.replace(params=params | dict(policy=policy) if _layers(eqn) else params)

  return jaxpr.replace(eqns=list(map(one, jaxpr.eqns)))


_PROGRAMS = (core.ClosedJaxpr, core.Jaxpr)


def _layers(eqn) -> bool:
  if eqn.primitive.name not in _LAYERS:
    return False
  return any('name' in {e.primitive.name for e in j.eqns} for _, j in jaxprs.inner(eqn))


def _step(closed, mesh, policy) -> float:
  """FLOPs of products of the loss and its gradient on one device."""
  args = [jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=_known(a, mesh)) for a in closed.in_avals]
  real = [i for i, a in enumerate(args) if jax.numpy.issubdtype(a.dtype, jax.numpy.inexact)]
  fn = core.jaxpr_as_fun(core.ClosedJaxpr(_with_policy(closed.jaxpr, policy), closed.consts))

  def gradient(*args):
    def loss(*values):
      full = list(args)
      for i, v in zip(real, values):
        full[i] = v
      return fn(*full)[0]

    return jax.value_and_grad(loss, tuple(range(len(real))))(*(args[i] for i in real))

  with _on(mesh):
    found = jax.make_jaxpr(gradient)(*args)
  used, _ = partial_eval.dce_jaxpr(found.jaxpr, [True] * len(found.out_avals))
  return _products(used) / (1 if mesh is None else mesh.size)


def _known(aval, mesh):
  explicit = mesh is not None and AxisType.Explicit in _abstract(mesh).axis_types
  return NamedSharding(_abstract(mesh), aval.sharding.spec) if explicit else None


def _costs(closed, mesh, names: list[str]) -> dict[str, float]:
  """FLOPs on one device that giving up each name alone costs."""
  save = jax.checkpoint_policies.save_only_these_names
  whole = _step(closed, mesh, save(*names))
  return {n: _step(closed, mesh, save(*(m for m in names if m != n))) - whole for n in names}
