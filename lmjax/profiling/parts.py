"""Which part of the model or the step an operation belongs to, from the path that XLA keeps of it:

  jit(step)/transpose(jvp(Transformer))/closed_call/segment_0/0_block/0_block.mix/mixer/q/dot_general

is of the mixer, in the backward pass. Names of modules are those that the stack and architectures
give (`nn/stack.py`); what stands in the scopes of `train.py` has theirs.
"""

import re

from lmjax.planning import access
from lmjax.planning import hlo
from lmjax.planning import matmuls

SCOPES = ('optimizer', 'norms')  # of train.py
MOVES = 'data movement'
UNKNOWN = 'no source'
WRAPPED = re.compile(r'\w+\(([^()]*)\)')
JITTED = re.compile(r'\bp?jit\([^()]*\)')  # functions that are compiled apart, not modules
BLOCK = re.compile(r'\d+_\w+(\..*)?$')
SEGMENT = re.compile(r'segment_\d+$')
PLAIN = re.compile(r'[a-z]\w*$')
TRANSFORMS = {
  'body', 'branch_0_fun', 'branch_1_fun', 'checkpoint', 'closed_call', 'cond', 'eval_jaxpr', 'jit',
  'pjit', 'rematted_computation', 'scan', 'shard_map', 'step', 'while',
}  # fmt: skip
COPIES = {
  'bitcast', 'broadcast', 'concatenate', 'copy', 'copy-done', 'copy-start', 'pad', 'reshape',
  'reverse', 'slice', 'slice-done', 'slice-start', 'transpose',
}  # fmt: skip
LOOKS = {'dynamic-slice', 'dynamic-update-slice', 'gather', 'scatter', 'sort'}
SUMS = {'reduce', 'reduce-window', 'select-and-scatter'}
COLLECTIVE = re.compile(
  r'(all-|reduce-scatter|collective-|ragged-all|send|recv|partition-id|replica-id)'
)
NOTHING = access.PLUMBING | {'iota', 'convert'}


def of(path: str) -> str:
  """'mixer, backward' and so on; `path` as in `hlo.Instruction.op_name`."""
  path = path.partition(';')[0]
  if not path:
    return UNKNOWN
  if '/' not in path and not path.startswith('jit('):
    return MOVES if re.search(r'[.\[]', path) else UNKNOWN  # state.params['embed'] is an argument
  scope = next((s for s in SCOPES if f'/{s}/' in f'{path}/'), '')
  if scope:
    return scope
  differentiated = 'jvp(' in path
  backward, again = 'transpose(' in path, 'rematted_computation' in path
  way = ', recomputed' if again else ', backward' if backward else ''
  return (_module(path) or ('head, loss' if differentiated else 'step')) + way


def _module(path: str) -> str:
  """The last named module on the path that is a part; '' outside of modules."""
  plain = JITTED.sub('', path)
  while (less := WRAPPED.sub(r'\1', plain)) != plain:
    plain = less
  *tokens, _ = [t for t in plain.split('/') if t]  # the last is the operation
  blocks = [n for n, t in enumerate(tokens) if BLOCK.match(t)]
  if blocks:
    inside = [t for t in tokens[blocks[-1] + 1 :] if t not in TRANSFORMS and PLAIN.match(t)]
    return _short(inside[0]) if inside else 'residual'
  if any(SEGMENT.match(t) for t in tokens) or 'closed_call' in tokens:
    return 'stack'  # what the scan over layers slices, stacks and carries
  named = [t for t in tokens if t not in TRANSFORMS and PLAIN.match(t)]
  if named:
    return _short(named[0])
  return 'stack' if any(t[0].isupper() for t in tokens) else ''  # the model's own class


def _short(name: str) -> str:
  return 'norm' if 'norm' in name.split('_') else name


def path_of(program: hlo.Program, i: hlo.Instruction) -> str:
  """Where an operation comes from: of a fusion, its matrix product, else its result, else the
  largest array inside that says so.
  """
  if i.opcode != 'fusion':
    return i.op_name
  inner = _inside(program, i)
  products = [x for c, x in inner if matmuls.flops(c, x) and '/' in x.op_name]
  if products:
    return max(products, key=lambda x: x.bytes).op_name
  if '/' in i.op_name:
    return i.op_name
  said = [x for _, x in inner if '/' in x.op_name]
  return max(said, key=lambda x: x.bytes).op_name if said else i.op_name


def readers(program: hlo.Program, i: hlo.Instruction, computation: hlo.Computation) -> str:
  """Parts that read the result of an operation of which XLA kept no path: it joins products of one
  input, as of mixer and feed-forward where they stand side by side.
  """
  found, seen, todo = set(), set(), [i.name]
  while todo:
    for user in computation.users[todo.pop()]:
      if user.name in seen:
        continue
      seen.add(user.name)
      part = of(path_of(program, user))
      if part not in (UNKNOWN, MOVES) and user.opcode not in access.PLUMBING:
        found.add(part)
      elif user.opcode in ('bitcast', 'get-tuple-element', 'copy', 'slice', 'fusion'):
        todo.append(user.name)
  return ' + '.join(sorted(found)) if 0 < len(found) < 4 else UNKNOWN


def flops(program: hlo.Program, i: hlo.Instruction, computation: hlo.Computation) -> float:
  """FLOPs of one run: matrix products and what kernels state, inside of fusions too."""
  if i.opcode == 'fusion':
    return float(sum(matmuls.flops(c, x) for c, x in _inside(program, i)))
  return matmuls.flops(computation, i)


def kind(program: hlo.Program, i: hlo.Instruction, computation: hlo.Computation) -> str:
  """What sort of work an operation is."""
  if COLLECTIVE.match(i.opcode):
    return 'collective'
  if i.opcode in ('while', 'call', 'conditional'):
    return 'loop or call'
  inner = _inside(program, i) if i.opcode == 'fusion' else [(computation, i)]
  codes = {x.opcode for _, x in inner} - NOTHING
  if any(matmuls.flops(c, x) for c, x in inner):
    return 'matrix product'
  if 'custom-call' in codes:
    return 'kernel'
  for name, group in (('reduction', SUMS), ('look-up, sort', LOOKS)):
    if codes & group:
      return name
  return MOVES if codes <= COPIES else 'element-wise'


def _inside(program: hlo.Program, i: hlo.Instruction):
  """[(computation, instruction)] of all that a fusion runs."""
  out = []
  for name in i.called.get('calls', ()):
    computation = program.computations[name]
    for x in computation.instructions.values():
      out.append((computation, x))
      out += _inside(program, x) if x.opcode == 'fusion' else []
  return out
