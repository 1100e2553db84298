"""How long a step takes at least, and about how long it takes.

  compute        FLOPs / (0.9 x peak)             memory  bytes / (0.9 x bandwidth)
  interconnect   bytes sent / (0.8 x link), summed over the collectives of an axis and network

The optimistic step is the largest of the three: everything overlaps. The pessimistic one is their
sum: nothing does. `step`, between them, is

  sum over operations of max(its compute, its memory) + max(0, interconnect - half of that sum)

so that a product and an elementwise pass do not overlap, while collectives hide behind at most half
of the work. The shares of the peaks that one can have: matrix products, 0.9 on TPUs and 0.8 on
GPUs; memory 0.9; links 0.8 (H200: 790 of 989 TFLOP/s and 4.3 of 4.8 TB/s measured; Austin et al.,
2025, How to Scale Your Model, chapters 2 and 12). `experiments/plans/` compares
with published runs.
"""

import dataclasses
from typing import Any

from lmjax.planning import access
from lmjax.planning import chips
from lmjax.planning import hlo
from lmjax.planning import links
from lmjax.planning import matmuls
from lmjax.planning import topologies

COMPUTE = {True: 0.9, False: 0.8}  # of the peak, TPU or not
MEMORY, LINKS = 0.9, 0.8
HIDDEN = 0.5  # of the work, behind which collectives can hide


@dataclasses.dataclass(frozen=True)
class Times:
  """Seconds of a step. work: the sum over operations of the larger of compute and memory. axes:
  {(network, axes): seconds} of the interconnect.
  """

  compute: float
  memory: float
  work: float
  axes: dict[tuple[str, str], float]

  @property
  def networks(self) -> dict[str, float]:
    out: dict[str, float] = {}
    for (network, _), seconds in self.axes.items():
      out[network] = out.get(network, 0.0) + seconds
    return out

  @property
  def interconnect(self) -> float:
    """Of the slowest network; they run beside each other."""
    return max(self.networks.values(), default=0.0)

  @property
  def bound(self) -> str:
    """The largest of the roofline times."""
    found = {'compute': self.compute, 'memory': self.memory, **self.networks}
    return max(found, key=found.__getitem__)

  @property
  def optimistic(self) -> float:
    return max(self.compute, self.memory, self.interconnect)

  @property
  def pessimistic(self) -> float:
    return self.compute + self.memory + sum(self.networks.values())

  @property
  def step(self) -> float:
    return self.work + max(0.0, self.interconnect - HIDDEN * self.work)


def compute_seconds(flops: float, chip: chips.Chip) -> float:
  return flops / (COMPUTE[chip.tpu] * chip.bf16)


def memory_seconds(bytes_: float, chip: chips.Chip) -> float:
  return bytes_ / (MEMORY * chip.bandwidth)


def interconnect(collectives: Any, mesh: Any, topology: topologies.Topology):
  """{(network, axes): seconds} of collectives as `traffic.collectives` or `trace` give them."""
  out: dict[tuple[str, str], float] = {}
  for c in collectives:
    if c.axes == () or not c.total:
      continue
    over = tuple(mesh.shape) if c.axes is None else c.axes
    link = links.of(mesh, over, topology)
    key = link.network, ' x '.join(over) if c.axes is not None else '?'
    out[key] = out.get(key, 0.0) + link.seconds(c.kind, c.total) / LINKS
  return out


def work_seconds(program: hlo.Program, chip: chips.Chip, default: int | None = None) -> float:
  """The sum over operations of a compiled program, loops times their trips; `default` as in
  `hlo.trips`.
  """
  inside = {
    name: sum(matmuls.flops(c, i) for i in c.instructions.values())
    for name, c in program.computations.items()
    if name in program.fused
  }
  total = 0.0
  for name, n in hlo.trips(program, default).items():
    if name in program.fused or not n:
      continue
    computation = program.computations[name]
    for i in computation.instructions.values():
      if access.is_plumbing(i):
        continue
      flops = matmuls.flops(computation, i)
      flops += sum(inside.get(c, 0.0) for names in i.called.values() for c in names)
      moved = access.bytes_moved(program, computation, i)
      total += n * max(compute_seconds(flops, chip), memory_seconds(moved, chip))
  return total
