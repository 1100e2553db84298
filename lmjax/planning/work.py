"""What one device does in a step of a compiled program: FLOPs, memory traffic, arrays it makes.

Everything is counted as often as it runs (`hlo.trips`), so that a scanned program counts what the
unrolled one does; XLA's own cost analysis counts a loop's body once.
"""

import dataclasses
from collections.abc import Iterator

from lmjax.planning import access
from lmjax.planning import hlo
from lmjax.planning import matmuls


def flops(program: hlo.Program, default: int | None = None) -> float:
  """FLOPs of one device in one step: matrix products and convolutions, and what kernels state
  (`pallas_call(cost_estimate=...)`).

  Not counted: element-wise work and reductions (also products of a matrix and a vector, where XLA
  makes reductions of them), FFTs, solvers, and the calls that `opaque` lists. Of a conditional only
  the largest branch counts. `default` as in `hlo.trips`.
  """
  return float(
    sum(n * matmuls.flops(computation, i) for computation, i, n in _all(program, default))
  )


@dataclasses.dataclass(frozen=True)
class Opaque:
  """A call of foreign code that does not say what it costs; `count` is how often a step runs it."""

  target: str
  op_name: str
  count: int
  results: tuple[hlo.Shape, ...]


def opaque(program: hlo.Program, default: int | None = None) -> list[Opaque]:
  """Calls whose FLOPs `flops` cannot know: kernels (Pallas, cuDNN attention), sorts, solvers."""
  return [
    Opaque(matmuls.target(i), i.op_name, n, i.shapes)
    for computation, i, n in _all(program, default)
    if matmuls.is_opaque(computation, i) and matmuls.target(i) not in access.COSTS_NOTHING
  ]


def memory_traffic(program: hlo.Program, default: int | None = None) -> float:
  """Bytes between main memory and the core of one device in one step; a rough estimate.

  Every instruction outside of fusions reads its operands and writes its results once, a fusion
  those of the whole; of what is only sliced or gathered from, the slice is read, and an update in
  place costs the update. What lies in on-chip memory, or with the host, costs nothing here.

  Rough, since it knows neither caches (all of a CPU's and a GPU's L2) nor the padding of tiled
  layouts, counts an operand that a fusion reads twice once, and takes kernels that state no bytes
  (`pallas_call(cost_estimate=...)`) to read each operand once. Expect a factor of two.
  """
  return float(
    sum(
      n * access.bytes_moved(program, computation, i)
      for computation, i, n in _made(program, default)
    )
  )


@dataclasses.dataclass(frozen=True)
class Buffer:
  """One array that a program makes."""

  bytes: int
  shape: hlo.Shape
  opcode: str
  op_name: str
  computation: str


def largest(program: hlo.Program, n: int = 20, default: int | None = None) -> list[Buffer]:
  """The n largest arrays of `shapes`, one for each shape, opcode and origin; largest first."""
  found = {
    Buffer(s.bytes, s, i.opcode, i.op_name, computation.name): None
    for computation, i, s in _arrays(program, default)
  }
  return sorted(found, key=lambda b: (-b.bytes, b.op_name, b.opcode, b.computation))[:n]


def shapes(program: hlo.Program, default: int | None = None) -> set[tuple[str, tuple[int, ...]]]:
  """{(type, sizes)} of every array that one device holds at some time: the arguments, and results
  of all that runs outside of fusions. A shape that is not here is never materialized.
  """
  return {(s.dtype, s.dims) for _, _, s in _arrays(program, default)}


def _all(
  program: hlo.Program, default: int | None
) -> Iterator[tuple[hlo.Computation, hlo.Instruction, int]]:
  """(computation, instruction, how often it runs) of everything that runs."""
  for name, n in hlo.trips(program, default).items():
    if n:
      computation = program.computations[name]
      for i in computation.instructions.values():
        yield computation, i, n


def _made(program: hlo.Program, default: int | None):
  """The same of what has results of its own: neither inside fusions nor another name for what is
  there already.
  """
  for computation, i, n in _all(program, default):
    argument = i.opcode == 'parameter' and computation.name == program.entry
    if computation.name not in program.fused and (argument or not access.is_plumbing(i)):
      yield computation, i, n


def _arrays(
  program: hlo.Program, default: int | None
) -> Iterator[tuple[hlo.Computation, hlo.Instruction, hlo.Shape]]:
  """The results; of what begins and is done, those of the second."""
  for computation, i, _ in _made(program, default):
    if not i.opcode.endswith('-start'):
      yield from ((computation, i, s) for s in i.shapes if s.dtype not in ('token', 'opaque'))
