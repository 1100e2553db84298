"""Bytes that one instruction of a compiled program moves to and from a device's main memory."""

from collections.abc import Iterable
from typing import Any

from lmjax.planning import matmuls

PLUMBING = {  # names for what is there already, and what holds other computations
  'add-dependency',
  'after-all',
  'async-done',
  'async-start',
  'async-update',
  'bitcast',
  'call',
  'conditional',
  'constant',
  'domain',
  'get-tuple-element',
  'optimization-barrier',
  'parameter',
  'partition-id',
  'replica-id',
  'tuple',
  'while',
}
CALLED_PLUMBING = {  # custom-calls of XLA for itself
  'AllocateBuffer',
  'AssumeGatherIndicesInBound',
  'AsyncCollectiveDone',
  'AsyncCollectiveStart',
  'ConcatBitcast',
  'GatherScatterIndicesBitpacked',
  'Sharding',
  'SPMDFullToShardShape',
  'SPMDShardToFullShape',
}
COSTS_NOTHING = CALLED_PLUMBING | {'SliceId', 'ZeroCrop'}  # no arithmetic, though it may move bytes
SLICES = ('dynamic-slice', 'gather', 'slice')
RENAMES = ('bitcast', 'get-tuple-element', 'reshape')


def is_plumbing(instruction: Any) -> bool:
  """Whether this makes nothing new."""
  if instruction.opcode == 'custom-call':
    return matmuls.target(instruction) in CALLED_PLUMBING
  return instruction.opcode in PLUMBING


def bytes_moved(program: Any, computation: Any, i: Any) -> int:
  """Bytes that one run of an instruction reads and writes; see `work.memory_traffic`."""
  far = _Far(program)
  if is_plumbing(i):
    return 0
  if i.opcode == 'fusion':
    return _fusion(far, computation, i)
  kind = i.opcode.removesuffix('-start')
  operands = computation.operand_shapes(i)
  if kind in SLICES:  # of a pair, the done writes
    made = i.shapes[1:2] if kind != i.opcode else i.shapes[:1]
    read = sum(s.bytes for s in made) if far.any(operands[0]) else 0
    return read + (far.bytes(i.shapes) if kind == i.opcode else 0)
  if kind == 'dynamic-update-slice':
    return far.bytes(operands[1]) + _update(far, i, operands[1])
  if kind == 'scatter':
    updates = operands[-1]
    return sum(far.bytes(s) for s in operands[1:]) + 2 * _update(far, i, updates)
  if kind != i.opcode:
    return sum(far.bytes(s) for s in operands)
  if i.opcode.endswith('-done'):
    return far.bytes(i.shapes)
  moved = sum(far.bytes(s) for s in operands) + far.bytes(i.shapes)
  if i.opcode == 'custom-call' and (stated := matmuls.stated(i, 'bytes_accessed')):
    near = sum(s.bytes for shapes in (*operands, i.shapes) for s in shapes) - moved
    return max(moved, int(stated) - near)
  return moved


class _Far:
  """Which arrays lie in main memory: on TPUs memory 0, elsewhere all but the host's."""

  def __init__(self, program):
    self.program = program
    self.near = (1, 2, 4, 5, 6) if program.tiled else (5,)

  def bytes(self, shapes: Iterable[Any]) -> int:
    return sum(s.bytes for s in shapes if s.space not in self.near)

  def any(self, shapes: Iterable[Any]) -> bool:
    return any(s.space not in self.near for s in shapes)


def _update(far: _Far, i: Any, update: Iterable[Any]) -> int:
  """What writing an update into the result of an instruction writes."""
  return sum(s.bytes for s in update) if far.any(i.shapes) else 0


def _fusion(far: _Far, computation: Any, i: Any) -> int:
  inner = far.program.computations[i.called['calls'][0]]
  total = 0
  for n, shapes in enumerate(computation.operand_shapes(i)):
    if far.any(shapes) and n in inner.parameters:
      total += min(far.bytes(shapes), _read(far.program, inner, inner.parameters[n]))
  root = inner.root
  made = (
    [inner.operand(root, n) for n in range(len(i.shapes))] if root.opcode == 'tuple' else [root]
  )
  for shape, source in zip(i.shapes, made):
    if far.any([shape]):
      total += min(shape.bytes, _written(far.program, inner, source))
  return total


def _read(program: Any, computation: Any, value: Any) -> int:
  """Bytes of an operand that a fused computation reads."""
  total = 0
  for user in computation.users[value.name]:
    first = user.operands[0] == value.name
    if user.opcode in RENAMES:
      total += _read(program, computation, user)
    elif user.opcode in SLICES and first:
      total += user.bytes
    elif user.opcode == 'tuple' or (user.opcode == 'dynamic-update-slice' and first):
      continue  # handed on, or updated in place
    elif user.opcode == 'fusion':
      inner = program.computations[user.called['calls'][0]]
      for n, name in enumerate(user.operands):
        if name == value.name:
          total += _read(program, inner, inner.parameters[n])
    else:
      return value.bytes
  return total


def _written(program: Any, computation: Any, value: Any) -> int:
  """Bytes that a fused computation writes of one of its results."""
  while value.opcode in RENAMES and computation.operand(value).opcode != 'fusion':
    value = computation.operand(value)
  if value.opcode == 'parameter':
    return 0
  if value.opcode == 'dynamic-update-slice':
    return computation.operand(value, 1).bytes
  if value.opcode == 'fusion' and len(value.shapes) == 1:
    inner = program.computations[value.called['calls'][0]]
    return _written(program, inner, inner.root)
  return value.bytes
