"""How often the computations of a program run: trip counts of loops, through everything that calls.

XLA on CPUs and GPUs writes `known_trip_count`; on TPUs it does not, so that a loop is played with
integers: its counter begins at a constant, the body adds to it, the condition compares it. Only the
scalars that the condition needs are followed.
"""

import dataclasses
import operator
import re
from typing import Any

from lmjax.planning import matmuls

LONGEST = 20_000  # turns of a loop that are played before it counts as unknown
RUNS = {'fusion': 'calls', 'call': 'to_apply', 'async-start': 'calls'}  # others only apply them
SAME = ('copy', 'bitcast', 'convert', 'reshape', 'copy-start', 'copy-done', 'optimization-barrier')
BINARY = {
  'add': operator.add,
  'subtract': operator.sub,
  'multiply': operator.mul,
  'maximum': max,
  'minimum': min,
  'and': operator.and_,
  'or': operator.or_,
}
COMPARE = {f.__name__.upper(): f for f in (operator.lt, operator.le, operator.gt, operator.ge)}
COMPARE |= {'EQ': operator.eq, 'NE': operator.ne}


def trips(program: Any, default: int | None = None) -> dict[str, int]:
  """{computation: how often it runs when the entry runs once}; those that are only applied
  (reducers, comparators) and those that never run are left out.

  A loop's body runs as often as its loop, times what holds the loop; its condition once more. Of a
  conditional only the largest branch counts (most FLOPs of matrix products, then most bytes of
  results), as if it was always taken: an upper bound. `default` stands for trip counts that are no
  constants; without it they raise ValueError, which names the loop.
  """
  return _Trips(program, default).counts()


def unknown(program: Any) -> list[str]:
  """Loops whose number of turns is no constant: it depends on data."""
  found = _Trips(program, 1)
  found.counts()
  return sorted({loop.op_name or loop.name for loop in found.unknown})


@dataclasses.dataclass
class _Trips:
  program: Any
  default: int | None

  def __post_init__(self):
    self.unknown: list[Any] = []
    self.found: dict[str, list[tuple[str, int]]] = {}
    self.values = _Values(self.program)

  def counts(self) -> dict[str, int]:
    order, out = self._order(), {self.program.entry: 1}
    for name in order:
      for callee, n in self.edges(name):
        out[callee] = out.get(callee, 0) + out[name] * n
    return out

  def _order(self) -> list[str]:
    """Callers before those they call."""
    done: dict[str, None] = {}
    stack = [(self.program.entry, False)]
    while stack:
      name, finished = stack.pop()
      if finished:
        done[name] = None
      elif name not in done:
        stack.append((name, True))
        stack += [(callee, False) for callee, _ in self.edges(name)]
    return list(done)[::-1]

  def edges(self, name: str) -> list[tuple[str, int]]:
    """[(computation that this one runs, how often)]."""
    if name not in self.found:
      computation = self.program.computations[name]
      out = []
      for i in computation.instructions.values():
        if i.opcode in RUNS:
          out += [(c, 1) for c in i.called.get(RUNS[i.opcode], ())]
        elif i.opcode == 'while':
          n = self._turns(name, i)
          out += [(i.called['body'][0], n), (i.called['condition'][0], n + 1)]
        elif i.opcode == 'conditional':
          out.append((max(branches(i), key=self.weight), 1))
      self.found[name] = out
    return self.found[name]

  def weight(self, name: str) -> tuple[float, int]:
    """(FLOPs, bytes of results) of a computation and what it runs."""
    computation = self.program.computations[name]
    each = computation.instructions.values()
    flops = float(sum(matmuls.flops(computation, i) for i in each))
    size = sum(i.bytes for i in each)
    for callee, n in self.edges(name):
      more, also = self.weight(callee)
      flops, size = flops + n * more, size + n * also
    return flops, size

  def _turns(self, name: str, loop: Any) -> int:
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes)
    turns = int(known[1]) if known else self.values.turns(name, loop)
    if turns is not None:
      return turns
    self.unknown.append(loop)
    if self.default is None:
      raise ValueError(
        f'the loop {loop.name} in {name} ({loop.op_name or "no op_name"}): how often it turns is '
        'no constant of the program'
      )
    return self.default


def branches(conditional: Any) -> list[str]:
  called = conditional.called
  return called.get('branch_computations') or [
    *called['true_computation'],
    *called['false_computation'],
  ]


@dataclasses.dataclass(frozen=True)
class _Place:
  """An instruction in a computation as it runs in one context: `given` are the elements of the
  state of the loop whose body or condition it is, `outer` the places of the operands of a fusion.
  """

  computation: str
  name: str
  given: Any = None
  outer: tuple = ()


class _Values:
  """Integer values of instructions where they are constants; None where they are not."""

  def __init__(self, program):
    self.program = program
    self.callers: dict[str, list] = {}
    for c in program.computations.values():
      for i in c.instructions.values():
        for names in i.called.values() if i.opcode in ('while', 'call', 'conditional') else ():
          for callee in names:
            self.callers.setdefault(callee, []).append((c.name, i))

  def turns(self, name: str, loop) -> int | None:
    """Plays the loop, following the elements of its state on which the condition depends."""
    body, condition = (self.program.computations[loop.called[k][0]] for k in ('body', 'condition'))
    first = _Place(name, loop.operands[0])
    state: dict[int, int | None] = {}

    def given(i):
      if i not in state:
        state[i] = self._element(first, i)
      return state[i]

    for n in range(LONGEST):
      more = self._value(_Place(condition.name, condition.root.name, given))
      if more is None or not more:
        return None if more is None else n
      if body.root.opcode != 'tuple':
        return None
      operands, before = body.root.operands, 0
      while before != len(state):  # what the followed ones depend on is followed too
        before = len(state)
        later = {i: self._value(_Place(body.name, operands[i], given)) for i in list(state)}
      state.update(later)
    return None

  def _value(self, place: _Place | None) -> int | None:
    if place is None:
      return None
    i = self._at(place)
    at = lambda n: self._value(dataclasses.replace(place, name=i.operands[n]))
    if i.opcode == 'constant':
      if re.fullmatch(r'-?\d+', i.inside):
        return int(i.inside)
      return {'true': 1, 'false': 0}.get(i.inside)
    if i.opcode in SAME:
      return at(0)
    if i.opcode in BINARY or i.opcode == 'compare':
      f = BINARY.get(i.opcode) or COMPARE[i.attribute('direction')]
      a, b = at(0), at(1)
      return None if a is None or b is None else int(f(a, b))
    if i.opcode == 'get-tuple-element':
      return self._element(dataclasses.replace(place, name=i.operands[0]), i.integers('index')[0])
    if i.opcode == 'fusion':
      return self._value(self._inside(place, i))
    if i.opcode == 'parameter':
      return self._value(self._argument(place, int(i.inside)))
    return None

  def _element(self, place: _Place | None, n: int) -> int | None:
    """The value of an element of a tuple."""
    if place is None:
      return None
    i = self._at(place)
    if i.opcode == 'tuple':
      return self._value(dataclasses.replace(place, name=i.operands[n]))
    if i.opcode in SAME:
      return self._element(dataclasses.replace(place, name=i.operands[0]), n)
    if i.opcode == 'fusion':
      return self._element(self._inside(place, i), n)
    if i.opcode == 'while' and self._keeps(i, n):
      return self._element(dataclasses.replace(place, name=i.operands[0]), n)
    if i.opcode == 'parameter':
      if place.given is not None:
        return place.given(n)
      above = self._argument(place, int(i.inside))
      held = [c for c in self.callers.get(place.computation, ()) if c[1].opcode == 'while']
      return None if held and not self._keeps(held[0][1], n) else self._element(above, n)
    return None

  def _at(self, place: _Place):
    return self.program.computations[place.computation].instructions[place.name]

  def _inside(self, place: _Place, fusion) -> _Place:
    inner = self.program.computations[fusion.called['calls'][0]]
    outer = tuple(dataclasses.replace(place, name=name) for name in fusion.operands)
    return _Place(inner.name, inner.root.name, None, outer)

  def _argument(self, place: _Place, n: int) -> _Place | None:
    """Where the nth parameter of a place's computation comes from, if from one place only."""
    if place.outer:
      return place.outer[n]
    callers = self.callers.get(place.computation, ())
    if len(callers) != 1:
      return None
    name, i = callers[0]
    if i.opcode == 'conditional':
      n = 1 + branches(i).index(place.computation)
    return _Place(name, i.operands[n])

  def _keeps(self, loop, n: int) -> bool:
    """Whether the body of a loop hands this element of its state on as it is."""
    body = self.program.computations[loop.called['body'][0]]
    if body.root.opcode != 'tuple':
      return False
    i = body.operand(body.root, n)
    while i.opcode in SAME:
      i = body.operand(i)
    return (
      i.opcode == 'get-tuple-element'
      and i.integers('index') == [n]
      and body.operand(i).opcode == 'parameter'
    )
