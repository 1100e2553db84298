"""A plan: what one chip holds and does in a step on a topology, and what follows for the run.

Two ways lead to one: `compiled`, from the program that libtpu makes of the step, and `estimated`,
from its trace (`trace`). Parameters, optimizer state and batch are exact in both; where a plan is
estimated, what else a chip holds is the activations that loops keep, and `SLACK` times what is live
beside them, since compilers trade memory that is left for speed; bytes moved are `TRAFFIC` times
those of the trace, since compilers fuse more than it does. Both factors come from comparing with
compiled steps (`experiments/plans/`).
"""

import dataclasses
from typing import Any

import jax

from lmjax import build as build_lib
from lmjax import flops as flops_lib
from lmjax import mesh_checks
from lmjax import plan as plan_lib
from lmjax.parallel import mesh as mesh_lib
from lmjax.parallel import shard
from lmjax.planning import compile as compile_lib
from lmjax.planning import hlo
from lmjax.planning import loops as loops_lib
from lmjax.planning import roofline
from lmjax.planning import topologies
from lmjax.planning import trace
from lmjax.planning import traffic
from lmjax.planning import work

SLACK, TRAFFIC = 1.5, 0.6
ONCE = 1  # turns of a loop whose number of turns depends on data


@dataclasses.dataclass(frozen=True)
class Plan:
  """Of one chip and one step, unless it says otherwise.

  source: 'compiled' or 'estimated'. mesh: axis sizes. state: bytes by what they hold, of what is
  there before the step: parameters, optimizer, other, batch. temporaries: bytes beside the state
  at the largest; gradients and kept (activations for the backward pass) are part of them. host:
  bytes in the memory of the chip's host.
  flops: of the hardware; model_full, model_causal: of the model, in both accountings. bytes: moved
  to and from the chip's memory. collectives: rows of `traffic.table`. opaque: kernels whose FLOPs
  nobody knows. loops: those whose turns depend on data, counted once (known of compiled plans).
  seconds: of compiling.
  """

  topology: topologies.Topology
  source: str
  mesh: dict[str, int]
  state: dict[str, float]
  temporaries: float
  host: float
  gradients: float
  kept: float
  flops: float
  model_full: float
  model_causal: float
  bytes: float
  collectives: tuple[dict[str, Any], ...]
  opaque: tuple[str, ...]
  loops: tuple[str, ...]
  times: roofline.Times
  tokens: int
  steps: int
  seconds: float

  @property
  def peak(self) -> float:
    return sum(self.state.values()) + self.temporaries

  @property
  def fits(self) -> bool:
    return self.peak <= self.topology.chip.usable

  def tokens_per_second(self, step: float) -> float:
    """Of all chips."""
    return self.tokens / step

  def mfu(self, step: float) -> tuple[float, float]:
    """(all pairs of positions counted, the allowed ones counted)."""
    peak = step * self.topology.chip.bf16
    return self.model_full / peak, self.model_causal / peak


def mesh_of(run: build_lib.Run, topology: topologies.Topology):
  """The config's mesh over the chips of a topology, checked; None for one chip.

  Raises ValueError naming the key where it does not divide, and what would.
  """
  places = topology.places()
  settings = run.config['mesh']
  mesh = mesh_lib.make(settings, places)
  if mesh is None and topology.chips > 1:
    raise ValueError(
      f'config.mesh asks for one device, --topology={topology} has {topology.chips}; set '
      'config.mesh.data=-1, say'
    )
  if mesh is not None:
    mesh_checks.devices(run, mesh)
  return mesh


def held(run: build_lib.Run, mesh) -> tuple[dict[str, float], float]:
  """Bytes of a step's arguments: on one chip, by what they hold, and in its host's memory."""
  placed = None if mesh is None else run.placements(mesh)
  total = lambda tree_of: float(plan_lib.piece_bytes(run, placed, tree_of))
  params, opt = total(lambda s: s.params), total(lambda s: s.opt)
  everything = total(lambda s: s)
  batch = build_lib.nbytes(run.batch_shapes()) / (1 if mesh is None else shard.sharing(mesh.shape))
  scalars = sum(s.dtype.itemsize for s in jax.tree.leaves(run.state_shapes.opt) if not s.shape)
  away = opt - scalars if run.config['offload'] else 0.0  # scalars stay, see `offload`
  found = dict(
    parameters=params, optimizer=opt - away, other=everything - params - opt, batch=batch
  )
  return found, away


def estimated(run: build_lib.Run, topology: topologies.Topology, mesh=None) -> Plan:
  """From the trace alone. Raises ValueError where mesh, model and topology do not fit together."""
  mesh = mesh_of(run, topology) if mesh is None else mesh
  e = trace.estimate(run, None if mesh is None else mesh.abstract_mesh, topology.chip)
  (state, host), chip = held(run, mesh), topology.chip
  bytes_ = TRAFFIC * e.bytes
  compute, memory = roofline.compute_seconds(e.flops, chip), roofline.memory_seconds(bytes_, chip)
  busy = max(compute, memory, e.work - (1 - TRAFFIC) * roofline.memory_seconds(e.bytes, chip))
  axes = roofline.interconnect(e.collectives, mesh, topology)
  return _plan(
    run,
    topology,
    mesh,
    source='estimated',
    state=state,
    # What waits on the host comes in when the activations have gone.
    temporaries=max(e.kept + SLACK * (e.live - e.kept), host + state['parameters']),
    host=host,
    kept=e.kept,
    flops=e.flops,
    bytes=bytes_,
    collectives=tuple(traffic.table(e.collectives)),
    opaque=(),
    loops=(),
    times=roofline.Times(compute, memory, busy, axes),
    seconds=0.0,
  )


def compiled(run: build_lib.Run, topology: topologies.Topology, guess: Plan, limit: float) -> Plan:
  """From the program that libtpu compiles within `limit` seconds. Where it does not fit, the plan
  is the guess with the memory that the compiler says it would need. Raises ValueError.
  """
  mesh, chip = mesh_of(run, topology), topology.chip
  found = compile_lib.compiled(run.config, topology, sum(guess.state.values()), limit)
  temporaries = found.peak - sum(guess.state.values())
  if found.needed is not None:
    return dataclasses.replace(guess, temporaries=temporaries, seconds=found.seconds)
  program = hlo.parse(found.text)
  collectives = traffic.collectives(program, mesh, ONCE)
  flops, bytes_ = work.flops(program, ONCE), work.memory_traffic(program, ONCE)
  times = roofline.Times(
    roofline.compute_seconds(flops, chip),
    roofline.memory_seconds(bytes_, chip),
    roofline.work_seconds(program, chip, ONCE),
    roofline.interconnect(collectives, mesh, topology),
  )
  return _plan(
    run,
    topology,
    mesh,
    source='compiled',
    state=guess.state,
    temporaries=temporaries,
    host=found.memory['host_argument'] + found.memory['host_temp'],
    kept=guess.kept,
    flops=flops,
    bytes=bytes_,
    collectives=tuple(traffic.table(collectives)),
    opaque=tuple(sorted({o.target for o in work.opaque(program, ONCE)})),
    loops=tuple(loops_lib.unknown(program)),
    times=times,
    seconds=found.seconds,
  )


def _plan(run, topology, mesh, **found) -> Plan:
  per_token, tokens = flops_lib.per_token(run), run.config['batch_tokens']
  return Plan(
    topology=topology,
    mesh={} if mesh is None else dict(mesh.shape),
    gradients=found['state']['parameters'],
    model_full=per_token.step_full * tokens / topology.chips,
    model_causal=per_token.step_causal * tokens / topology.chips,
    tokens=tokens,
    steps=run.config['steps'],
    **found,
  )
