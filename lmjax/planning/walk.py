"""Walking through a traced program: what it multiplies, moves, sends and holds on one device of a
mesh. See `trace` for what is assumed.
"""

import dataclasses
import math
from typing import Any

import jax

from lmjax.kernels import cost
from lmjax.parallel import jaxprs
from lmjax.planning import chips
from lmjax.planning import layout as layout_lib
from lmjax.planning import roofline
from lmjax.planning import traffic

WRITES = {
  'dot_general', 'reduce_sum', 'reduce_max', 'reduce_min', 'argmax', 'argmin', 'gather', 'sort',
  'scatter', 'scatter-add', 'scatter_add', 'concatenate', 'cumsum', 'cumlogsumexp', 'cummax',
  'top_k', 'conv_general_dilated', 'dynamic_update_slice', 'reduce_precision', 'triangular_solve',
}  # fmt: skip
CALLS = {
  'jit', 'pjit', 'closed_call', 'core_call', 'remat2', 'checkpoint', 'custom_jvp_call',
  'custom_vjp_call', 'custom_vjp_call_jaxpr', 'shard_map',
}  # fmt: skip
ADDS = {'add', 'add_any', 'convert_element_type', 'copy'}  # what partial sums pass through
NOTHING = (0.0, 0.0)  # live bytes inside an operation
MOVES = {  # kind by primitive, of code that is written for one device of an axis
  'psum': 'all-reduce',
  'psum_invariant': 'all-reduce',
  'pmax': 'all-reduce',
  'all_gather': 'all-gather',
  'all_gather_invariant': 'all-gather',
  'reduce_scatter': 'reduce-scatter',
  'psum_scatter': 'reduce-scatter',
  'all_to_all': 'all-to-all',
  'ppermute': 'collective-permute',
}


@dataclasses.dataclass
class Value:
  """An array: its layout, and, where it is fused into its readers, the written ones that it is
  made of; None where it is written itself. `settled`: a gradient that lies like its parameter;
  `stacked`: made by a loop, a slice each round; `pending`:
  mesh axes over which it is still a partial sum of this type.
  """

  layout: tuple
  bytes: float
  leaves: tuple['Value', ...] | None = None
  settled: bool = False
  stacked: bool = False
  pending: frozenset = frozenset()
  dtype: Any = None

  def sources(self) -> tuple['Value', ...]:
    return (self,) if self.leaves is None else self.leaves


def narrowed(jaxpr) -> dict[Any, Any]:
  """{result of a placement: the smaller type that all its readers convert it to}: compilers convert
  first and move less.
  """
  found: dict[Any, Any] = {}
  placed = {e.outvars[0] for e in jaxpr.eqns if e.primitive.name == 'sharding_constraint'}
  for eqn in jaxpr.eqns:
    for v in eqn.invars:
      if isinstance(v, jax.extend.core.Literal) or v not in placed:
        continue
      to = eqn.params['new_dtype'] if eqn.primitive.name == 'convert_element_type' else v.aval.dtype
      if v not in found or to.itemsize > found[v].itemsize:
        found[v] = to
  return {v: t for v, t in found.items() if t.itemsize < v.aval.dtype.itemsize}


class Walk:
  """Adds up what a traced program does on a mesh of these axis sizes, on a chip."""

  def __init__(self, sizes: dict[str, int], homes: dict[tuple[int, ...], tuple], chip: chips.Chip):
    self.sizes, self.homes, self.chip = sizes, homes, chip
    self.flops = self.bytes = self.work = 0.0
    self.collectives: list[traffic.Collective] = []
    self.gathered: dict[tuple, tuple] = {}  # what this body has gathered, and of what

  def collective(self, kind, axes, payload, dtype, times):
    axes = tuple(a for a in self.sizes if a in axes and self.sizes[a] > 1)
    n = math.prod(self.sizes[a] for a in axes)
    if n > 1:
      self.collectives.append(
        traffic.Collective(
          kind, axes, n, str(dtype), times, payload, traffic.wire(kind, payload, n)
        )
      )

  def count(self, flops: float, bytes_: float, times: int) -> None:
    self.flops += flops * times
    self.bytes += bytes_ * times
    compute = roofline.compute_seconds(flops, self.chip)
    self.work += max(compute, roofline.memory_seconds(bytes_, self.chip)) * times

  def run(self, jaxpr, args: list[Value], times: int, manual=frozenset()):
    """(values of the results, (the largest sum of live bytes inside, those of them that loops have
    stacked)), the arguments left out.
    """
    env: dict[Any, Value] = dict(zip(jaxpr.invars, args))
    for v in jaxpr.constvars:
      env[v] = self.constant(v.aval)
    last = {}
    for n, eqn in enumerate(jaxpr.eqns):
      for v in eqn.invars:
        if not isinstance(v, jax.extend.core.Literal):
          last[v] = n
    for v in jaxpr.outvars:
      if not isinstance(v, jax.extend.core.Literal):
        last[v] = len(jaxpr.eqns)
    narrow = narrowed(jaxpr)
    ends: dict[int, int] = {}  # id of a written value -> the last operation that reads it
    given = {id(v) for a in args for v in a.sources()}
    live, top, held = 0.0, (0.0, 0.0), {}
    for n, eqn in enumerate(jaxpr.eqns):
      read = [
        self.constant(v.aval) if isinstance(v, jax.extend.core.Literal) else env[v]
        for v in eqn.invars
      ]
      if eqn.outvars and eqn.outvars[0] in narrow:
        aval = eqn.outvars[0].aval.update(dtype=narrow[eqn.outvars[0]])
        spec = layout_lib.of_spec(eqn.params['sharding'].spec, len(aval.shape))
        out, inside = [self.placed(aval, read[0], spec, times)], NOTHING
      else:
        out, inside = self.operation(eqn, read, times, manual)
      before = live
      for var, value in zip(eqn.outvars, out):
        env[var] = value
        for s in value.sources():
          if id(s) in given:
            continue
          ends[id(s)] = max(ends.get(id(s), 0), last.get(var, n))
          if id(s) not in held:
            held[id(s)] = s
            live += s.bytes
      # What a loop gives has its place while it turns; what else is called has made it inside.
      most = live + inside[0] if eqn.primitive.name == 'scan' else max(live, before + inside[0])
      if most > top[0]:
        top = most, inside[1] + sum(v.bytes for v in held.values() if v.stacked)
      for key in [k for k in held if ends[k] <= n]:
        live -= held.pop(key).bytes
    out = []
    for v in jaxpr.outvars:
      literal = isinstance(v, jax.extend.core.Literal)
      out.append(self.constant(v.aval) if literal else env[v])
    return out, top

  def value(self, aval, layout) -> Value:
    return Value(layout, layout_lib.local(aval, layout, self.sizes))

  def constant(self, aval) -> Value:
    return Value(layout_lib.none(aval), 0.0, ())

  def operation(self, eqn, read: list[Value], times: int, manual):
    """(values, live bytes inside) of one operation."""
    name = eqn.primitive.name
    if name == 'scan':
      for v in read:
        self.settle(v, times)
      return self.scan(eqn, read, times, manual)
    if name == 'while':
      body = _plain(eqn.params['body_jaxpr'])
      return self.run(body, read[-len(body.invars) :], times, manual)
    if name == 'cond':
      return self.run(_plain(eqn.params['branches'][-1]), read[1:], times, manual)
    if name in CALLS:
      return self.call(eqn, read, times, manual)
    if name in MOVES:
      return self.moved(eqn, read, times), NOTHING
    if name == 'pallas_call':
      for v in read:
        self.settle(v, times)
      return self.kernel(eqn, read, times)
    layouts = [v.layout for v in read]
    if self.stays_partial(eqn, read):
      out = self.fused(eqn.outvars[0].aval, read[0].layout, read)
      return [dataclasses.replace(out, pending=read[0].pending)], NOTHING
    for v in read:
      self.settle(v, times)
    if len(eqn.outvars) != 1:
      same = lambda aval: layout_lib.elementwise(_Result(eqn, aval), layouts, aval)
      return [self.fused(v.aval, same(v.aval), read) for v in eqn.outvars], NOTHING
    layout, summed = layout_lib.passed_on(eqn, layouts)
    layout = tuple(tuple(a for a in axes if a not in manual) for axes in layout)
    return [self.result(eqn, read, layout, summed, times)], NOTHING

  def kernel(self, eqn, read, times):
    """A call of code for one device, which fuses with nothing: what it reads is written before."""
    costs = cost.of(eqn)
    out = [self.value(v.aval, layout_lib.none(v.aval)) for v in eqn.outvars]
    fresh = [v for v in read if v.leaves]
    sources = {id(s): s for v in fresh for s in v.sources()}
    written = sum(v.bytes for v in fresh)
    self.count(0.0, written + sum(s.bytes for s in sources.values()), times)
    self.count(costs.flops, costs.bytes_accessed, times)
    return out, (written + sum(v.bytes for v in out), 0.0)

  def result(self, eqn, read, layout, summed, times) -> Value:
    name, aval = eqn.primitive.name, eqn.outvars[0].aval
    if name == 'sharding_constraint':
      return self.placed(aval, read[0], layout, times)
    if name == 'dynamic_update_slice' and read[0].sources():  # in its place
      self.count(0.0, 2 * read[1].bytes, times)
      return self.fused(aval, layout, read[:1])
    if name not in WRITES:
      return self.fused(aval, layout, read)
    out, flops = self.value(aval, layout), 0.0
    if name == 'dot_general':
      (contracted, _), _ = eqn.params['dimension_numbers']
      cut = *layout, *(read[0].layout[d] for d in contracted)
      flops = jaxprs.multiplied(eqn) / layout_lib.ways(cut, self.sizes)
    sources = {id(s): s for v in read for s in v.sources()}
    self.count(flops, sum(s.bytes for s in sources.values()) + out.bytes, times)
    return self.reduced(aval, out, summed, times) if summed else out

  def reduced(self, aval, out: Value, summed, times) -> Value:
    """A partial sum over mesh axes, summed: into the place of a parameter, or everywhere."""
    home = self.homes.get(tuple(aval.shape))
    cut = {a for axes in home for a in axes} & summed if home else set()
    if cut:
      placed = self.value(aval, home)
      placed.settled = True
      self.collective('reduce-scatter', cut, placed.bytes * self._n(cut), aval.dtype, times)
      self.collective('all-reduce', summed - cut, placed.bytes, aval.dtype, times)
      return placed
    if layout_lib.size_of(aval) > 1:
      return dataclasses.replace(out, pending=frozenset(summed), dtype=aval.dtype)
    self.collective('all-reduce', summed, out.bytes, aval.dtype, times)
    return out

  def stays_partial(self, eqn, read: list[Value]) -> bool:
    """Whether partial sums pass through: compilers add them up before they reduce them."""
    if not read or not read[0].pending or len({v.pending for v in read}) > 1:
      return False
    if eqn.primitive.name == 'sharding_constraint':
      spec = eqn.params['sharding'].spec
      return layout_lib.of_spec(spec, len(read[0].layout)) == read[0].layout
    return eqn.primitive.name in ADDS

  def settle(self, value: Value, times: int) -> None:
    """A partial sum is summed over the mesh, once, before anything but adding reads it."""
    if value.pending:
      self.collective('all-reduce', value.pending, value.bytes, value.dtype, times)
      value.pending = frozenset()

  def _n(self, axes) -> int:
    return math.prod(self.sizes[a] for a in axes)

  def placed(self, aval, value: Value, layout, times) -> Value:
    """An array with a placement asked for: gathered where it was cut over more axes."""
    if value.sources() and all(s.settled for s in value.sources()):
      # The transposed gather of a parameter asks for all of its gradient, to be cut again behind.
      return self.fused(aval, value.layout, [value])
    before, after = (layout_lib.ways(x, self.sizes) for x in (value.layout, layout))
    if before <= after:
      return self.fused(aval, layout, [value])
    key = tuple(id(s) for s in value.sources()), layout, str(aval.dtype), tuple(aval.shape)
    if value.sources() and key in self.gathered:  # by the forward pass that is computed again, say
      return self.gathered[key][0]
    out = self.value(aval, layout)
    self.gathered[key] = out, value
    axes = {a for d in value.layout for a in d} - {a for d in layout for a in d}
    self.collective('all-gather', axes, out.bytes, aval.dtype, times)
    return out

  def fused(self, aval, layout, read: list[Value]) -> Value:
    """What its readers make for themselves, of written arrays at least as large."""
    size = layout_lib.local(aval, layout, self.sizes)
    sources = {id(s): s for v in read for s in v.sources()}
    return Value(layout, size, tuple(sources.values()), dtype=aval.dtype)

  def moved(self, eqn, read, times) -> list[Value]:
    axes = eqn.params.get('axes', eqn.params.get('axis_name'))
    axes = (axes,) if isinstance(axes, str) else tuple(a for a in axes if isinstance(a, str))
    out, kind = [], MOVES[eqn.primitive.name]
    for v, value in zip(eqn.outvars, read):
      made = self.value(v.aval, value.layout)
      payload = value.bytes if kind == 'reduce-scatter' else made.bytes
      self.collective(kind, axes, payload, v.aval.dtype, times)
      out.append(made)
    return out

  def call(self, eqn, read, times, manual):
    p = eqn.params
    inner = p.get('jaxpr', p.get('call_jaxpr', p.get('fun_jaxpr')))
    if eqn.primitive.name != 'shard_map':
      return self.run(_plain(inner), read, times, manual)
    own = frozenset(p['newly_manual_axes' if 'newly_manual_axes' in p else 'manual_axes'])
    drop = lambda x: tuple(tuple(a for a in axes if a not in own) for axes in x)
    args = [Value(drop(v.layout), v.bytes, v.leaves) for v in read]
    out, top = self.run(inner, args, times, manual | own)
    placed = []
    for var, spec, value in zip(eqn.outvars, p['out_specs'], out):
      cut = layout_lib.of_spec(spec, len(var.aval.shape))
      merged = layout_lib.unique(tuple(a + b for a, b in zip(cut, value.layout)))
      placed.append(self.value(var.aval, merged))
      if value.leaves == ():  # a constant costs nothing outside either
        placed[-1].leaves = ()
    return placed, top

  def scan(self, eqn, read, times, manual):
    p = eqn.params
    body, trips = _plain(p['jaxpr']), p['length']
    same = lambda outer, inner: len(outer.aval.shape) == len(inner.aval.shape)
    # Slices have a dimension less inside; what comes before them are constants and the carry.
    nk = sum(map(same, eqn.outvars, body.outvars))
    nc = sum(map(same, eqn.invars, body.invars)) - nk
    one = lambda v, aval: self.value(aval, v.layout[1:])
    slices = [one(v, b.aval) for v, b in zip(read[nc + nk :], body.invars[nc + nk :])]
    carried = read[nc : nc + nk]
    # First without counting: a carry that begins as zeros lies as the loop leaves it.
    trial = Walk(self.sizes, self.homes, self.chip)
    found, _ = trial.run(body, [*read[:nc], *carried, *slices], 1, manual)
    carried = [
      self.value(b.aval, f.layout if any(f.layout) else c.layout)
      for b, f, c in zip(body.invars[nc : nc + nk], found, carried)
    ]
    outside, self.gathered = self.gathered, {}
    out, top = self.run(body, [*read[:nc], *carried, *slices], times * trips, manual)
    self.gathered = outside
    for v in out:
      self.settle(v, times * trips)
    kept = []
    for var, v in zip(eqn.outvars[nk:], out[nk:]):
      kept.append(self.value(var.aval, ((), *v.layout)))
      kept[-1].settled = bool(v.sources()) and all(s.settled for s in v.sources())
      kept[-1].stacked = not kept[-1].settled
      self.count(0.0, 2 * kept[-1].bytes, times)  # written once, and its slices read again
    return [*carried, *kept], top


def _plain(jaxpr):
  """A jaxpr without its constants."""
  return getattr(jaxpr, 'jaxpr', jaxpr)


@dataclasses.dataclass(frozen=True)
class _Result:
  """One of several results of an operation, as `layout.elementwise` wants it."""

  eqn: Any
  aval: Any

  @property
  def invars(self):
    return self.eqn.invars

  @property
  def primitive(self):
    return self.eqn.primitive
