"""What a step would take, from its trace alone: no compiler, no devices, about a second.

The traced step is walked operation by operation, with the layout of every array on the mesh
(`layout`). What is elementwise is taken to be fused into what reads it and costs nothing but
reading what it is made of; products, sums, loops and collectives write their results. From that:

  flops        2 x the local sizes of every product, loops times their trips, recomputation included
  bytes        what is written and read of the device's memory
  collectives  partial sums, gathered parameters and reduce-scattered gradients (ZeRO-3)
  live bytes   the largest sum of arrays that are still needed, loops and recomputation inside

Compilers fuse, schedule and share buffers in ways that this does not know: `experiments/plans/`
compares both. A partial sum of a parameter's shape is reduce-scattered to the parameter's place.
"""

import contextlib
import dataclasses

import jax

from lmjax import build as build_lib
from lmjax.kernels import choice
from lmjax.parallel import folding
from lmjax.parallel import shard
from lmjax.planning import chips
from lmjax.planning import layout as layout_lib
from lmjax.planning import traffic
from lmjax.planning import walk as walk_lib


@dataclasses.dataclass(frozen=True)
class Estimate:
  """Of one device and one step; `live`: bytes at the largest, without the step's arguments; kept:
  of them, what loops stack for later. work: seconds, the sum over
  operations of the larger of compute and memory.
  """

  flops: float
  bytes: float
  work: float
  collectives: tuple[traffic.Collective, ...]
  live: float
  kept: float


def estimate(run, mesh, chip: chips.Chip) -> Estimate:
  """The step of a built run on an abstract mesh, or on one device where `mesh` is None."""
  key = jax.eval_shape(lambda: jax.random.key(0))
  given = run.state_shapes, run.batch_shapes(), key
  on = contextlib.nullcontext() if mesh is None else jax.sharding.use_abstract_mesh(mesh)
  cut = mesh is not None and mesh.shape.get(folding.AXIS, 1) > 1
  with on, run.choices('tpu' if chip.tpu else 'gpu'), _anywhere(run, chip, cut):
    traced = jax.make_jaxpr(run.step)(*given)
  sizes, layouts = ({}, None) if mesh is None else (dict(mesh.shape), run.placements(mesh))
  return _walked(run, traced, given, sizes, layouts, chip)


def _anywhere(run, chip: chips.Chip, cut: bool):
  """A plan for GPUs is the same on every machine: cuDNN's attention, which `auto` takes where a GPU
  is, can be traced nowhere else, and its FLOPs cannot be seen. cut: over the axis `sequence`, where
  attention is the same everywhere and `auto` all that is known.
  """
  auto = not chip.tpu and not cut and run.config['kernels']['attention'] == choice.AUTO
  return choice.using(attention='xla') if auto else contextlib.nullcontext()


def _walked(run, traced, given, sizes, placements, chip) -> Estimate:
  state, batch, key = given
  shapes = jax.tree.leaves(state)
  if placements is None:
    specs = [()] * len(shapes)
  else:
    specs = [p.spec for p in jax.tree.leaves(placements, is_leaf=build_lib.is_placement)]
  layouts = [layout_lib.of_spec(s, len(x.shape)) for s, x in zip(specs, shapes)]
  rows = tuple(a for a in shard.RULES['batch'] if a in sizes)
  homes: dict[tuple[int, ...], tuple] = {}
  for x, l in zip(shapes, layouts):
    if any(l):
      homes.setdefault(tuple(x.shape), l)
      if len(x.shape) > 1 and any(l[1:]):  # one layer of a stack
        homes.setdefault(tuple(x.shape[1:]), l[1:])
  walk = walk_lib.Walk(sizes, homes, chip)
  args = [walk.value(x, l) for x, l in zip(shapes, layouts)]
  for x in jax.tree.leaves(batch):
    args.append(walk.value(x, (rows, *layout_lib.none(x)[1:])))
  args.append(walk.value(key, layout_lib.none(key)))
  out, live = walk.run(traced.jaxpr, args, 1)
  for v in out:
    walk.settle(v, 1)
  done = {id(s): s for v in out for s in v.sources()}
  new = sum(v.bytes for v in out if v.leaves is not None)
  walk.count(0.0, new + sum(s.bytes for s in done.values()), 1)
  return Estimate(walk.flops, walk.bytes, walk.work, tuple(walk.collectives), *live)
