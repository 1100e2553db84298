"""Time of each operation beside its FLOPs, its bytes and the roofline.

The least time of an operation is the larger of FLOPs / peak and bytes / bandwidth; which of the two
it is, is what it is bound by. FLOPs are those of matrix products and of kernels that state them;
bytes are operands read and results written, as `planning.work` counts them: rough, and of arrays
that stay in a cache too many, so that more than 100 % of the roofline is possible.
"""

import collections
import dataclasses
import re
from typing import Any, Callable, Collection, Sequence

from lmjax.planning import access
from lmjax.planning import hlo
from lmjax.planning import matmuls
from lmjax.profiling import events as events_lib
from lmjax.profiling import parts

UNMATCHED = 'not matched'
IDLE = 'between operations'
RUNS = ('while', 'call', 'conditional')
NO_ROOF = ('collective',)


@dataclasses.dataclass(frozen=True)
class Rates:
  """What a device can do: FLOP/s and bytes/s, and where the figures are from."""

  flops: float
  bytes: float
  source: str


@dataclasses.dataclass
class Row:
  """Operations taken together, of one device and one step. compute, memory: least seconds by either
  roof; ops: how many different ones. known: False where FLOPs and bytes are not.
  """

  name: str
  part: str = ''
  kind: str = ''
  path: str = ''
  seconds: float = 0.0
  calls: float = 0.0
  flops: float = 0.0
  bytes: float = 0.0
  compute: float = 0.0
  memory: float = 0.0
  least: float = 0.0
  ops: int = 1
  known: bool = True

  @property
  def bound(self) -> str:
    if not self.least:
      return ''
    return 'compute' if self.compute > self.memory else 'memory'

  @property
  def reached(self) -> float | None:
    """Of the roofline; None where it says nothing."""
    return self.least / self.seconds if self.least and self.seconds and self.known else None

  def record(self, total: float) -> dict[str, Any]:
    out = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
    for name in ('flops', 'bytes'):
      rate = getattr(self, name) / self.seconds if self.seconds and self.known else None
      out[f'{name}_per_second'] = rate
    return out | dict(
      share=self.seconds / total if total else 0.0,
      bound=self.bound,
      of_roofline=self.reached,
    )


class Costs:
  """What the instructions of a compiled program cost, by the names that traces have.

  seen: the names in a trace. An operation that runs others (a loop, a call) of which none is seen
    is one kernel, and costs what they do.
  """

  def __init__(self, program: hlo.Program, seen: Collection[str]):
    self.program = program
    self.found: dict[str, tuple[hlo.Computation, hlo.Instruction]] = {}
    for c in program.computations.values():
      if c.name not in program.fused:
        self.found |= {i.name: (c, i) for i in c.instructions.values()}
    # Kernels of GPUs are called like their instruction, with letters that a kernel's name may have.
    self.kernels = {_letters(name): name for name in self.found}
    self.above = _above(program)
    self.trips = hlo.trips(program, default=1)
    self.open = frozenset().union(*(self.above.get(self.known(n), ()) for n in seen))

  def known(self, name: str) -> str:
    """The instruction that an event is of; the name itself where it is of none."""
    return name if name in self.found else self.kernels.get(_letters(name), name)

  def of(self, name: str) -> tuple[float, float, bool]:
    """(FLOPs, bytes, whether these are known) of one run of an instruction."""
    computation, i = self.found[name]
    if i.opcode in RUNS and name not in self.open:
      return self._whole(computation, name)
    known = not matmuls.is_opaque(computation, i)
    moved = access.bytes_moved(self.program, computation, i)
    return parts.flops(self.program, i, computation), moved, known

  def _whole(self, computation: hlo.Computation, name: str) -> tuple[float, float, bool]:
    flops, moved, known, runs = 0.0, 0.0, True, self.trips.get(computation.name, 0)
    for other, (inner, i) in self.found.items():
      if name in self.above.get(other, ()) and i.opcode not in RUNS and runs:
        n = self.trips.get(inner.name, 0) / runs
        flops += n * parts.flops(self.program, i, inner)
        moved += n * access.bytes_moved(self.program, inner, i)
        known &= not matmuls.is_opaque(inner, i)
    return flops, moved, known

  def row(self, name: str, seconds: float, calls: float, rates: Rates) -> Row:
    """One operation; what is no instruction of the program is a row of its own."""
    name = self.known(name)
    if name not in self.found:
      return Row(name, UNMATCHED, UNMATCHED, seconds=seconds, calls=calls, known=False)
    computation, i = self.found[name]
    kind = parts.kind(self.program, i, computation)
    path = parts.path_of(self.program, i)
    part = 'collectives' if kind == 'collective' else parts.of(path)
    if part == parts.UNKNOWN:
      moves = kind == parts.MOVES
      part = parts.MOVES if moves else parts.readers(self.program, i, computation)
    row = Row(name, part, kind, path, seconds, calls)
    flops, moved, row.known = self.of(name)
    row.flops, row.bytes = calls * flops, calls * moved
    if kind not in NO_ROOF and row.known:
      row.compute, row.memory = row.flops / rates.flops, row.bytes / rates.bytes
      row.least = max(row.compute, row.memory)
    return row


def _above(program: hlo.Program) -> dict[str, frozenset[str]]:
  """{instruction: all that run it}."""
  runs: dict[str, list[str]] = {}  # computation -> instructions that run it
  for c in program.computations.values():
    for i in c.instructions.values():
      for name in sum(i.called.values(), []) if i.opcode in RUNS else ():
        runs.setdefault(name, []).append(i.name)
  home = {i: c.name for c in program.computations.values() for i in c.instructions}
  found: dict[str, frozenset[str]] = {}

  def above(computation: str) -> frozenset[str]:
    if computation not in found:
      own = runs.get(computation, [])
      found[computation] = frozenset(own).union(*(above(home[i]) for i in own))
    return found[computation]

  return {i: above(c) for i, c in home.items()}


def _letters(name: str) -> str:
  return re.sub(r'\W', '_', name)


def rows(costs: Costs, spent: Sequence[events_lib.Spent], rates: Rates) -> list[Row]:
  """One row an operation, the mean of the devices, largest first; the last is the time in which a
  device waited inside of a step.
  """
  seconds, calls = collections.Counter(), collections.Counter()
  for s in spent:
    for name, value in s.seconds.items():
      seconds[name] += value / len(spent)
    for name, value in s.calls.items():
      calls[name] += value / len(spent)
  names = sorted(calls, key=lambda name: -seconds[name])
  out = [costs.row(name, seconds[name], calls[name], rates) for name in names]
  idle = sum(s.idle for s in spent) / len(spent)
  return [*out, Row(IDLE, IDLE, IDLE, seconds=idle, ops=0)]


def grouped(found: Sequence[Row], key: Callable[[Row], str]) -> list[Row]:
  """The rows taken together by a key, largest first."""
  out: dict[str, Row] = {}
  for r in found:
    name = key(r)
    into = out.setdefault(name, Row(name, name, name, ops=0))
    for field in ('seconds', 'calls', 'flops', 'bytes', 'compute', 'memory', 'least', 'ops'):
      setattr(into, field, getattr(into, field) + getattr(r, field))
    into.known &= r.known or not r.seconds
  return sorted(out.values(), key=lambda r: -r.seconds)


def by(found: Sequence[Row], what: str) -> list[Row]:
  """The table by 'op', 'part' or 'kind'."""
  if what == 'op':
    return sorted(found, key=lambda r: -r.seconds)
  return grouped(found, lambda r: getattr(r, what))
