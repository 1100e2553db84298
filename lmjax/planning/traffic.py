"""Collectives of a compiled program: what is sent over which mesh axes, and how much of it.

Bytes on the wire are those that one device sends with the best known algorithms, with n devices in
a group and B bytes of payload (Thakur et al., 2005, doi:10.1177/1094342005051521):

  kind                                    payload                    wire
  all-gather                              the gathered array         (n-1)/n B
  reduce-scatter                          the array to be reduced    (n-1)/n B
  all-reduce                              the array to be reduced    2 (n-1)/n B
  all-to-all, ragged-all-to-all           what a device holds        (n-1)/n B
  collective-permute, send                what a device sends        B
  collective-broadcast                    the array                  B

What a ragged all-to-all really sends is known at run time alone; its whole operand is counted.
"""

import dataclasses
import functools
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from lmjax.planning import groups
from lmjax.planning import hlo
from lmjax.planning import matmuls

KINDS = (
  'all-gather',
  'all-reduce',
  'all-to-all',
  'collective-broadcast',
  'collective-permute',
  'ragged-all-to-all',
  'reduce-scatter',
  'send',
)
BETWEEN_SLICES = {  # transfer types of the runtime that connects slices
  'ALL_REDUCE': 'all-reduce',
  'ALL_GATHER': 'all-gather',
  'REDUCE_SCATTER': 'reduce-scatter',
  'ALL_TO_ALL': 'all-to-all',
  'ONE_TO_ONE': 'collective-permute',
}


WHOLE = ('send', 'collective-permute', 'collective-broadcast')  # the payload is what is sent


def wire(kind: str, payload: float, n: int) -> float:
  """Bytes that one device of n sends, by the table above."""
  if kind in WHOLE:
    return payload
  return payload * (n - 1) / n * (2 if kind == 'all-reduce' else 1)


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective instruction; `payload` and `wire` are bytes of one device each time it runs,
  which is `count` times a step. `axes` is None where its groups are no union of mesh axes.
  """

  kind: str
  axes: tuple[str, ...] | None
  size: int
  dtype: str
  count: int
  payload: int
  wire: float
  op_name: str = ''
  name: str = ''
  between_slices: bool = False

  @property
  def total(self) -> float:
    """Bytes that one device sends in a step."""
    return self.wire * self.count


def collectives(program: hlo.Program, mesh: Any, default: int | None = None) -> list[Collective]:
  """Every collective of a step. Pairs of start and done are one collective, and so are the
  fusions in which a TPU begins, continues and ends one; its fusions of an all-reduce and a slice
  count as the reduce-scatter that they are.

  `mesh` is a `jax.sharding.Mesh`, (axis sizes, array of partition numbers) or None; `default` as in
  `hlo.trips`. Raises ValueError where mesh and program do not belong together.
  """
  grid = groups.grid(mesh, program.partitions)
  counts = hlo.trips(program, default)
  begun = _begun(program)
  over = functools.cache(functools.partial(_over, grid, program.partitions))
  out = []
  for name, count in counts.items():
    computation = program.computations[name]
    for i in computation.instructions.values():
      kind = i.opcode.removesuffix('-start')
      if kind not in KINDS:
        continue
      if name in program.fused and name not in begun and _channel(i) in begun.values():
        continue  # it began in another fusion
      if kind == 'send':
        out.append(_send(computation, i, grid, count))
      else:
        out.append(_collective(computation, i, kind, over, count))
  return [c for c in out if c is not None]


def table(found: Iterable[Collective]) -> list[dict[str, Any]]:
  """Sums by kind, axes and type, sorted, of plain values: how many collectives a step runs, and the
  bytes of payload and on the wire of one device.
  """
  rows: dict[tuple, dict[str, Any]] = {}
  for c in found:
    axes = None if c.axes is None else list(c.axes)
    key = (c.kind, '?' if axes is None else ','.join(axes), c.dtype)
    row = dict(kind=c.kind, axes=axes, dtype=c.dtype, count=0, payload=0, wire=0)
    row = rows.setdefault(key, row)
    row['count'] += c.count
    row['payload'] += c.payload * c.count
    row['wire'] += c.total
  return [row | {'wire': round(row['wire'])} for _, row in sorted(rows.items())]


def _channel(i: Any) -> tuple[str, str | None]:
  """What the fusions that begin, continue and end one collective have in common."""
  return i.opcode, i.attribute('channel_id')


def _begun(program: hlo.Program) -> dict[str, tuple]:
  """{fusion that begins an asynchronous collective: its channel}."""
  out = {}
  for name in program.fused:
    each = program.computations[name].instructions.values()
    if any(matmuls.target(i) == 'AsyncCollectiveStart' for i in each if i.opcode == 'custom-call'):
      out[name] = next(_channel(i) for i in each if i.opcode in KINDS)
  return out


def _over(grid: groups.Grid, partitions: int, kind: str, text: str):
  """(axes, size of a group) of a collective with these pairs or groups."""
  if kind == 'collective-permute':
    axes = grid.across(groups.pairs(text))
    return axes, grid.count(axes or ())
  members = groups.read(text, partitions)
  if members is None:  # of different sizes: the largest
    return None, max(len(g.split(',')) for g in re.findall(r'\{([\d,]+)\}', text))
  return grid.axes(members), members.shape[1]


def _collective(computation, i, kind, over, count) -> Collective:
  text = i.attribute('source_target_pairs') if kind == 'collective-permute' else groups.written(i)
  axes, size = over(kind, text)
  if kind == 'all-reduce' and computation.name.startswith('all-reduce-scatter'):
    kind = 'reduce-scatter'
  taken = [s for shapes in computation.operand_shapes(i) for s in shapes]
  if kind == 'ragged-all-to-all':
    taken = taken[:1]  # then the array that it writes into, offsets and sizes
  return _made(kind, axes, size, taken, count, i)


def _made(kind, axes, size, taken, count, i, between_slices=False) -> Collective:
  """A collective that takes these arrays on each device."""
  payload = sum(s.bytes for s in taken) * (size if kind == 'all-gather' else 1)
  return Collective(
    kind=kind,
    axes=axes,
    size=size,
    dtype='+'.join(sorted({s.dtype for s in taken})),
    count=count,
    payload=payload,
    wire=wire(kind, payload, size) if axes != () or kind not in WHOLE else 0,
    op_name=i.op_name,
    name=i.name,
    between_slices=between_slices,
  )


def _send(computation, i, grid, count) -> Collective | None:
  """A transfer between slices, or a plain send; None for what goes to the host."""
  taken = list(computation.operand(i).shapes)
  kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', i.attributes)
  if not kind:
    if i.attribute('is_host_transfer') == 'true':
      return None
    found = re.search(r'_xla_send_recv_source_target_pairs="?(\{\{.*?\}\})', i.attributes)
    axes = grid.across(groups.pairs(found[1])) if found else None
    return _made('send', axes, grid.count(axes or ()), taken, count, i)
  if kind[1] not in BETWEEN_SLICES:
    raise ValueError(
      f'{i.name}: a transfer of the type {kind[1]}; known types: {", ".join(BETWEEN_SLICES)}'
    )
  axes, size = _slices(i, grid)
  return _made(BETWEEN_SLICES[kind[1]], axes, size, taken, count, i, between_slices=True)


def _slices(i, grid) -> tuple[tuple[str, ...] | None, int]:
  """(axes, group size) of a transfer between slices, whose groups hold numbers of devices: lists,
  pairs, or "{1,2}x{0:15}", the places 0 to 15 of slices 1 and 2 (a device's number is 100,000 times
  its slice's, plus its place).
  """
  listed = re.search(r'_xla_megascale_target=(\{\{.*?\}\})', i.attributes)
  if listed and '->' in listed[1]:
    axes = grid.across(groups.pairs(listed[1]), of_devices=True)
    return axes, grid.count(axes or ())
  if listed:
    members = groups.read(listed[1], 0)
  else:
    form = r'_xla_megascale_target="\{([\d,]+)\}x\{(\d+)(?::(\d+))?\}"'
    found = re.search(form, i.attributes)
    if not found:
      raise ValueError(f'{i.name}: the target of a transfer between slices is not understood')
    first, last = int(found[2]), int(found[3] or found[2])
    slices = [int(n) for n in found[1].split(',')]
    members = np.array([[100_000 * s + p for s in slices] for p in range(first, last + 1)])
  return grid.axes(members, of_devices=True), members.shape[1]
