"""Reading compiled XLA programs: the text of `compiled.as_text()`, of CPUs, TPUs and GPUs.

The text is a list of computations, callees first, of instructions like

  %name = shape opcode(%operand, ...), attribute=value, ..., metadata={...}, backend_config={...}

one a line (a few attributes hold newlines). The program is optimized, scheduled and partitioned:
its shapes are those of one device. The text is what stays the same from one release of XLA to the
next and what carries everything; its grammar is that of `HloModule::ToString` in openxla/xla.
"""

import dataclasses
import functools
import math
import re

from lmjax.planning import loops

BITS = {'pred': 8, 'token': 0, 'opaque': 0, 'tuple': 0, 'bf16': 16, 'c64': 64, 'c128': 128} | {
  f'{kind}{n}': n for kind in 'suf' for n in (1, 2, 4, 8, 16, 32, 64)
}
LEAF = re.compile(r'([a-z][a-z0-9]*)\[([^\]]*)\](?:\{([^}]*)\})?')
PARENTHESES = re.compile(r'[()]')
NAME = re.compile(r'%([^\s,(){}]+)')
CALLED = re.compile(
  r'\b(calls|to_apply|body|condition|true_computation|false_computation|branch_computations)='
  r'(\{[^}]*\}|%[^\s,(){}]+)'
)
START = re.compile(r'\s+(ROOT )?%?(\S+) = ')


@dataclasses.dataclass(frozen=True)
class Shape:
  """One array of a result: XLA's name of the type, sizes, and the memory it lies in (0 is the
  device's main memory, 1 the core's own on TPUs, 5 the host's).
  """

  dtype: str
  dims: tuple[int, ...]
  space: int = 0

  @property
  def bytes(self) -> int:
    """Bytes without the padding of tiled layouts. Raises ValueError for an unknown type."""
    bits = BITS.get(self.dtype)
    if bits is None:
      if not (found := re.fullmatch(r'f(\d)e\d.*', self.dtype)):
        raise ValueError(f'{self.dtype}: the size of this element type is not known')
      bits = int(found[1])
    return -(-math.prod(self.dims) * bits // 8)


@functools.lru_cache(maxsize=None)
def _leaves(text: str) -> tuple[Shape, ...]:
  out = []
  for dtype, dims, layout in LEAF.findall(text):
    space = re.search(r'S\((\d+)\)', layout)
    sizes = tuple(int(d.strip().removeprefix('<=')) for d in dims.split(',') if d.strip())
    out.append(Shape(dtype, sizes, int(space[1]) if space else 0))
  return tuple(out)


@dataclasses.dataclass(slots=True)
class Instruction:
  """One line of a computation; `inside` is what stands between the parentheses (the literal of a
  constant, the number of a parameter), `attributes` all that follows them, as written.
  """

  name: str
  opcode: str
  result: str
  inside: str
  attributes: str
  is_root: bool

  @property
  def shapes(self) -> tuple[Shape, ...]:
    """Arrays of the result, those of (nested) tuples in order."""
    return _leaves(self.result)

  @property
  def bytes(self) -> int:
    return sum(s.bytes for s in self.shapes)

  @property
  def operands(self) -> list[str]:
    return [] if self.opcode in ('constant', 'parameter') else NAME.findall(self.inside)

  @property
  def op_name(self) -> str:
    """Where it comes from in the program that was compiled, '' where XLA does not say."""
    found = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.attributes)
    return found[1] if found else ''

  @property
  def called(self) -> dict[str, list[str]]:
    """Names of computations by attribute: calls, body, condition, to_apply ..."""
    if '=%' not in self.attributes and '={%' not in self.attributes:
      return {}
    return {key: NAME.findall(names) for key, names in CALLED.findall(self.attributes)}

  def attribute(self, key: str) -> str | None:
    """The text of an attribute's value, braces included; None where there is none."""
    found = re.search(rf'(?:^|[\s,]){re.escape(key)}=', self.attributes)
    if not found:
      return None
    text = self.attributes[found.end() :]
    depth = 0
    for mark in re.finditer(r'[{}()\[\]]|, | (?=\w+=)', text):
      if mark[0] in '{([':
        depth += 1
      elif mark[0] in '})]':
        depth -= 1
      elif depth == 0:
        return text[: mark.start()]
    return text

  def integers(self, key: str) -> list[int]:
    """The numbers of an attribute like `dimensions={0,2}`; none where there is no such."""
    return [int(n) for n in re.findall(r'-?\d+', self.attribute(key) or '')]


@dataclasses.dataclass
class Computation:
  name: str
  instructions: dict[str, Instruction] = dataclasses.field(default_factory=dict)

  @functools.cached_property
  def root(self) -> Instruction:
    return next(i for i in self.instructions.values() if i.is_root)

  @functools.cached_property
  def users(self) -> dict[str, list[Instruction]]:
    """Instructions that read each one."""
    out = {name: [] for name in self.instructions}
    for i in self.instructions.values():
      for name in dict.fromkeys(i.operands):
        out[name].append(i)
    return out

  @functools.cached_property
  def parameters(self) -> dict[int, Instruction]:
    return {int(i.inside): i for i in self.instructions.values() if i.opcode == 'parameter'}

  def operand(self, instruction: Instruction, n: int = 0) -> Instruction:
    return self.instructions[instruction.operands[n]]

  def operand_shapes(self, instruction: Instruction) -> list[tuple[Shape, ...]]:
    """The arrays of each operand."""
    return [self.instructions[name].shapes for name in instruction.operands]


@dataclasses.dataclass
class Program:
  """Computations by name; `entry` is the name of the one that runs. `partitions` is over how many
  devices (of one slice, where there are several) the program is cut.
  """

  entry: str
  computations: dict[str, Computation]
  partitions: int
  replicas: int

  @functools.cached_property
  def fused(self) -> set[str]:
    """Computations inside fusions: what they make stays in registers and on-chip memory."""
    return {
      name
      for c in self.computations.values()
      for i in c.instructions.values()
      if i.opcode == 'fusion'
      for name in i.called['calls']
    }

  @functools.cached_property
  def tiled(self) -> bool:
    """Whether layouts have tiles: a TPU's program, whose memory 1 is the core's own."""
    return any('T(' in i.result for i in self.computations[self.entry].instructions.values())


def parse(text: str) -> Program:
  """Reads the text of a compiled program.

  Raises ValueError where it is none.
  """
  if not text.startswith('HloModule'):
    raise ValueError(f'not the text of an XLA program: it begins with {text[:40]!r}')
  lines = text.split('\n')
  found: dict[str, Computation] = {}
  entry, current, buffer = '', None, []
  for line in lines[1:]:
    if current is None:
      if line.endswith('{') and (line.startswith(('%', 'ENTRY '))):
        current = Computation(NAME.search(line)[1])
        found[current.name] = current
        entry = current.name if line.startswith('ENTRY ') else entry
    elif line == '}' or line.startswith('}, execution_thread='):
      _flush(current, buffer)
      current = None
    elif START.match(line):
      _flush(current, buffer)
      buffer.append(line)
    else:
      buffer.append(line)  # a newline inside an attribute
  if not entry:
    raise ValueError('the text of the XLA program has no ENTRY computation')
  number = lambda key: int((re.search(rf'{key}=(\d+)', lines[0]) or [0, 1])[1])
  return Program(entry, found, number('num_partitions'), number('replica_count'))


def trips(program: Program, default: int | None = None) -> dict[str, int]:
  """How often each computation runs when the entry runs once; see `loops.trips`."""
  return loops.trips(program, default)


def _flush(computation: Computation, lines: list[str]) -> None:
  """Adds the instruction of these lines, which it empties."""
  if lines and (start := START.match(lines[0])):
    i = _instruction('\n'.join(lines), start)
    computation.instructions[i.name] = i
  lines.clear()


def _instruction(text: str, start: re.Match) -> Instruction:
  """Cuts `shape opcode(operands), attributes` by its parentheses: nothing else is balanced."""
  at = start.end()
  end = _closing(text, at) + 1 if text[at] == '(' else text.index(' ', at)
  opening = text.index('(', end)
  closing = _closing(text, opening)
  return Instruction(
    name=start[2],
    opcode=text[end:opening].strip(),
    result=text[at:end],
    inside=text[opening + 1 : closing],
    attributes=text[closing + 1 :],
    is_root=bool(start[1]),
  )


def _closing(text: str, at: int) -> int:
  """Where the parenthesis that opens at this place closes."""
  depth = 0
  for mark in PARENTHESES.finditer(text, at):
    depth += 1 if mark[0] == '(' else -1
    if depth == 0:
      return mark.start()
  raise ValueError(f'a parenthesis never closes in {text[at : at + 60]!r}')
