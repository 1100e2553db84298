"""Which parameters' steps work on single elements, and these steps as functions of blocks.

A step over all parameters is traced; what one parameter's results are made of is a list of
operations. Where all of them work element by element on arrays of that parameter's shape, they are
run on any part of them. Scalars (bias corrections, counts) are computed once, outside.
"""

from typing import Any, Callable, NamedTuple

import jax
from jax.extend import core
import jax.numpy as jnp

from lmjax.parallel import jaxprs

OPERATIONS = frozenset(
  'abs add add_any and convert_element_type copy div eq exp ge gt integer_pow is_finite le log lt '
  'max min mul ne neg not or pow rsqrt select_n sign sqrt square sub'.split()
)
CALLS = frozenset('closed_call core_call custom_jvp_call jit pjit'.split())


class Plan(NamedTuple):
  """One parameter. gradient: place among the updates. states: places among the state's leaves.
  given: arrays and scalars, where `arrays` says how many are arrays; codes come first, then others.
  run: (blocks of decoded codes..., of other arrays..., scalars...) -> (update, new states...).
  """

  gradient: int
  states: tuple[int, ...]
  codes: tuple
  scales: tuple
  arrays: tuple
  scalars: tuple
  blocks: Any
  run: Callable


class _Node(NamedTuple):
  """An operation on arrays; inputs: nodes, _Input, or scalars."""

  primitive: Any
  params: dict
  inputs: tuple
  shape: tuple
  place: int


class _Input(NamedTuple):
  """An argument; place: in the list of all, None for an array that the step closes over."""

  value: Any
  shape: tuple
  state: int | None


def plans(step, updates, codes, scales, known) -> list[Plan]:
  """One for each parameter that can be done in blocks."""
  paths, grads = zip(*jax.tree.leaves_with_path(updates))
  state_paths, kept = zip(*jax.tree.leaves_with_path(codes))
  scales = jax.tree.structure(codes).flatten_up_to(scales)
  decoded = [
    x if s is None else jax.ShapeDtypeStruct(x.shape, jnp.float32) for x, s in zip(kept, scales)
  ]
  state = jax.tree.unflatten(jax.tree.structure(codes), decoded)
  closed = jax.make_jaxpr(step)(updates, state)
  inputs = [_Input(g, g.shape, None) if g.ndim else g for g in grads]
  inputs += [
    _Input(x, x.shape, None if s is None else j) if x.ndim else x
    for j, (x, s) in enumerate(zip(kept, scales))
  ]
  results = _graph(closed.jaxpr, closed.consts, inputs)
  found = []
  for i, path in enumerate(paths):
    own = [
      j
      for j, p in enumerate(state_paths)
      if scales[j] is not None and p[len(p) - len(path) :] == path
    ]
    if path in known and own:
      outs = [results[n] for n in (i, *(len(grads) + j for j in own))]
      plan = _plan(i, own, outs, known[path], kept, scales, grads[i].dtype)
      found += [plan] if plan else []
  return found


def _graph(jaxpr, consts, args) -> list:
  """Results of a program: scalars computed, the rest as nodes. What it does not know stays a node
  that nobody can run.
  """
  env: dict = {}
  as_input = lambda x: _Input(x, x.shape, None) if getattr(x, 'ndim', 0) else x
  read = lambda v: v.val if isinstance(v, core.Literal) else env[v]
  env |= dict(zip(jaxpr.constvars, map(as_input, consts))) | dict(zip(jaxpr.invars, args))
  for place, eqn in enumerate(jaxpr.eqns):
    values = [read(v) for v in eqn.invars]
    inside = [j for _, j in jaxprs.inner(eqn)]
    if eqn.primitive.name in CALLS and inside:
      closed = [v for v in eqn.params.values() if isinstance(v, core.ClosedJaxpr)]
      outs = _graph(closed[0].jaxpr, closed[0].consts, values)
    elif any(isinstance(v, (_Node, _Input)) for v in values) or any(
      v.aval.shape for v in eqn.outvars
    ):
      outs = [
        _Node(eqn.primitive, eqn.params, tuple(values), v.aval.shape, place) for v in eqn.outvars
      ]
    else:
      outs = eqn.primitive.bind(*values, **eqn.params)
      outs = outs if eqn.primitive.multiple_results else [outs]
    env |= dict(zip(eqn.outvars, outs))
  return [read(v) for v in jaxpr.outvars]


def _plan(gradient, own, outs, blocks, kept, scales, dtype) -> Plan | None:
  order, seen = [], {}
  if not all(_collect(x, blocks.shape, order, seen) for x in outs) or dtype != jnp.float32:
    return None
  codes = {x.state: x for x in order if isinstance(x, _Input) and x.state is not None}
  arrays = [x for x in order if isinstance(x, _Input) and x.state is None]
  scalars = [v for x in order if isinstance(x, _Node) for v in x.inputs if _traced(v)]
  if set(codes) - set(own) or any(x.value.dtype != jnp.float32 for x in arrays):
    return None
  if any(jnp.result_type(v) != jnp.float32 for v in scalars):
    return None

  def run(decoded, others, numbers):
    env = {id(codes[j]): x for j, x in zip(own, decoded) if j in codes}
    env |= {id(a): x for a, x in zip(arrays, others)} | dict(zip(map(id, scalars), numbers))
    shape = decoded[0].shape
    fill = lambda v: env.get(id(v), v)
    for x in order:
      if isinstance(x, _Node):
        values = [jnp.broadcast_to(fill(v), shape) for v in x.inputs]
        env[id(x)] = _run(x, values)
    return [env[id(x)] for x in outs]

  return Plan(
    gradient,
    tuple(own),
    tuple(kept[j] for j in own),
    tuple(scales[j] for j in own),
    tuple(x.value for x in arrays),
    tuple(scalars),
    blocks,
    run,
  )


def _run(x: _Node, values):
  name = x.primitive.name
  if name in ('broadcast_in_dim', 'sign'):
    return values[0] if name == 'broadcast_in_dim' else sign(*values)
  return x.primitive.bind(*values, **x.params)


def sign(x):
  """As jnp.sign, which Mosaic only knows how to make on a TPU."""
  one = jnp.ones_like(x)
  return jnp.where(x > 0, one, jnp.where(x < 0, -one, x))


def _traced(v) -> bool:
  """Whether it is a scalar that only the running program knows."""
  return isinstance(v, jax.Array)


def _collect(x, shape, order, seen) -> bool:
  """Appends what x is made of, in order; False where that is more than single elements."""
  if id(x) in seen:
    return seen[id(x)]
  fine = isinstance(x, (_Node, _Input)) and x.shape == shape
  if fine and isinstance(x, _Node):
    arrays = [v for v in x.inputs if isinstance(v, (_Node, _Input))]
    spread = x.primitive.name == 'broadcast_in_dim' and not arrays
    fine = x.primitive.name in OPERATIONS or spread
    fine = fine and all(_collect(v, shape, order, seen) for v in arrays)
  seen[id(x)] = fine
  if fine:
    order.append(x)
  return fine
