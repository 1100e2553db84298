"""Spec strings: the small language in which configs name parts.

A spec is Python call syntax with literal arguments: `gqa(head_dim=64, kv_heads=4)`. Three joints
exist:

  chain   'clip(norm=1.0) | adam(b2=0.95)'            parts applied one after another
  sum     '0.7*text(path="a.txt") + 0.3*jsonl(path="b.jsonl")'   weighted alternatives
  stack   'full + (local, local, full)*3 + shared(full)*4'       segments of named blocks

Text is read with `ast` and only literals are accepted, so that a config string can never execute
anything. A part outside lmjax is named `package.module:Object(arg=1)`.
"""

import ast
import dataclasses
import io
import math
import tokenize
from typing import Any

MOST = 100_000  # characters of a spec: tokenizing takes their square
LONGEST = 160  # characters of a value that a message shows


class SpecError(ValueError):
  """A spec that cannot be read; the message names the text and what is accepted."""


@dataclasses.dataclass(frozen=True)
class Call:
  """One name with its literal keyword arguments; an argument may itself be a Call or a chain of
  them.
  """

  name: str
  args: tuple[tuple[str, Any], ...] = ()

  def __str__(self) -> str:
    return self.name + '(' + ', '.join(f'{k}={show(v)}' for k, v in self.args) + ')'


@dataclasses.dataclass(frozen=True)
class Segment:
  """`pattern` block names, run in order, `repeats` times; `shared` reuses one set of weights."""

  pattern: tuple[str, ...]
  repeats: int = 1
  shared: bool = False


def show(value: Any) -> str:
  """The text of an argument, such that parsing it gives the argument back."""
  if isinstance(value, tuple) and value and all(isinstance(v, Call) for v in value):
    return ' | '.join(map(str, value))
  return str(value) if isinstance(value, Call) else repr(value)


def brief(value: Any, longest: int = LONGEST) -> str:
  """show(value) for a message, its middle left out where it is long."""
  try:
    text = show(value)
  except (ValueError, RecursionError):  # more digits than Python writes out, or nested too deep
    text = f'<{type(value).__name__}>'
  return cut(text, longest)


def shown(text: str) -> str:
  """Text as it was typed where that is short and printable, else `brief`."""
  return text if text.isprintable() and len(text) <= LONGEST else brief(text)


def cut(text: str, longest: int) -> str:
  """The text, without its middle where it is longer than that."""
  half = longest // 2
  return text if len(text) <= longest else f'{text[:half]} ... {text[-half:]}'


def _hide_paths(text: str) -> tuple[str, dict[str, str]]:
  """Replaces `package.module:Object` by an identifier, so that the rest is ordinary Python."""
  if ':' not in text:
    return text, {}
  blank = (tokenize.NEWLINE, tokenize.NL, tokenize.ENDMARKER)
  try:
    # Only what is needed of each token: it holds its whole line as well.
    read = tokenize.generate_tokens(io.StringIO(text).readline)
    tokens = [(t.type == tokenize.NAME, t.string) for t in read if t.type not in blank]
  except (tokenize.TokenError, SyntaxError, ValueError):
    return text, {}  # `ast` names the fault
  is_name = [n for n, _ in tokens] + [False, False]
  words = [w for _, w in tokens] + ['', '']
  out, hidden, i = [], {}, 0
  while i < len(tokens):
    j = i + 1
    while is_name[i] and words[j] == '.' and is_name[j + 1]:
      j += 2
    if is_name[i] and words[j] == ':' and is_name[j + 1]:
      name = f'_path_{len(hidden)}'
      hidden[name] = f'{"".join(words[i:j])}:{words[j + 1]}'
      out.append(name)
      i = j + 2
    else:
      out += words[i:j]
      i = j
  return (' '.join(out), hidden) if hidden else (text, {})


def _tree(text: str) -> tuple[ast.expr, dict[str, str]]:
  if not isinstance(text, str):
    raise SpecError(f'a spec is a string such as "name(arg=1)", not {brief(text)}')
  if not text.strip():
    raise SpecError('an empty spec; a name such as "name(arg=1)" is needed')
  if len(text) > MOST:
    raise SpecError(f'a spec of {len(text):,} characters is not read; at most {MOST:,} are')
  source, hidden = _hide_paths(text.strip())
  try:
    return ast.parse(source, mode='eval').body, hidden
  except UnicodeEncodeError:
    raise SpecError(f'{brief(text)} holds half a surrogate pair, which is not text') from None
  except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
    raise SpecError(
      f'cannot read the spec {brief(text)}: {getattr(e, "msg", e)}; '
      'write it as name(arg=1), arguments being literals'
    ) from None


def _flat(node: ast.expr, op: type) -> list[ast.expr]:
  """The operands of a joint, left to right; in a loop, since a chain may be long."""
  out, todo = [], [node]
  while todo:
    node = todo.pop()
    if isinstance(node, ast.BinOp) and isinstance(node.op, op):
      todo += [node.right, node.left]
    else:
      out.append(node)
  return out


def _source(node: ast.expr, hidden: dict[str, str]) -> str:
  """The text of a node, for a message."""
  try:
    text = ast.unparse(node)
  except (RecursionError, ValueError):  # nested too deep, or more digits than Python writes out
    return '...'
  for name, path in hidden.items():
    text = text.replace(name, path)
  return cut(text, LONGEST)


def _value(node: ast.expr, hidden: dict[str, str], where: str) -> Any:
  is_joint = isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr)
  if isinstance(node, (ast.Call, ast.Name)) or is_joint:
    calls = tuple(_call(n, hidden) for n in _flat(node, ast.BitOr))
    return calls if is_joint else calls[0]
  try:
    return checked(ast.literal_eval(node))
  except SpecError as e:
    raise SpecError(f'{where}={_source(node, hidden)}: {e}') from None
  except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
    raise SpecError(
      f'{where}={_source(node, hidden)} is not a literal (a number, a string in quotes, '
      'True, False, None, a tuple) nor a part'
    ) from None


def checked(value: Any) -> Any:
  """Lists become tuples, since arguments must be hashable. Refuses what could not be written back
  as it was read.
  """
  if isinstance(value, (list, tuple)):
    return tuple(checked(v) for v in value)
  if isinstance(value, (dict, set)):
    raise SpecError('dictionaries and sets are not accepted')
  if isinstance(value, float) and not math.isfinite(value):
    raise SpecError('a number is too large for a float; a finite one is expected')
  if isinstance(value, int) and value.bit_length() > 1000:
    raise SpecError(f'a number of {value.bit_length()} bits is not accepted; at most 1000 are')
  return value


def _call(node: ast.expr, hidden: dict[str, str]) -> Call:
  if isinstance(node, ast.Name):
    return Call(hidden.get(node.id, node.id))
  if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
    name = hidden.get(node.func.id, node.func.id)
    if node.args:
      first = _source(node.args[0], hidden)
      raise SpecError(f'{name}({first}): arguments are given by name, as in {name}(arg={first})')
    if any(k.arg is None for k in node.keywords):
      raise SpecError(f'{name}(**...) is not accepted; name each argument')
    seen = [k.arg for k in node.keywords]
    twice = sorted({k for k in seen if seen.count(k) > 1})
    if twice:
      raise SpecError(f'{name}: argument {twice[0]} is given twice')
    return Call(
      name, tuple((k.arg, _value(k.value, hidden, f'{name}.{k.arg}')) for k in node.keywords)
    )
  raise SpecError(f'expected name or name(arg=1), got {_source(node, hidden)!r}')


def call(text: str) -> Call:
  """Reads one part: 'gqa(head_dim=64)'."""
  node, hidden = _tree(text)
  if isinstance(node, ast.BinOp):
    raise SpecError(f'one part is expected here, not several: {brief(text)}')
  return _call(node, hidden)


def chain(text: str) -> dict[str, Call]:
  """Reads 'a() | b() | a()' into {'a': ..., 'b': ..., 'a_2': ...}, in order."""
  node, hidden = _tree(text)
  return label([_call(n, hidden) for n in _flat(node, ast.BitOr)])


def label(calls: list[Call]) -> dict[str, Call]:
  """Names each call by its part; the second of the same name gets the suffix _2."""
  out: dict[str, Call] = {}
  for c in calls:
    base = c.name.rsplit(':', 1)[-1]
    n, name = 1, base
    while name in out:
      n += 1
      name = f'{base}_{n}'
    out[name] = c
  return out


def weighted(text: str) -> dict[str, tuple[float | None, Call]]:
  """Reads '0.7*a() + 0.3*b()' into {'a': (0.7, ...), 'b': (0.3, ...)}; no weight gives None."""
  node, hidden = _tree(text)
  weights, calls = [], []
  for term in _flat(node, ast.Add):
    weight = None
    if isinstance(term, ast.BinOp) and isinstance(term.op, ast.Mult):
      try:
        weight = checked(ast.literal_eval(term.left))
      except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        weight = None
      if type(weight) not in (int, float):
        raise SpecError(f'a weight is a number, as in 0.7*name(); got {_source(term, hidden)!r}')
      weight = float(weight)
      term = term.right
    weights.append(weight)
    calls.append(_call(term, hidden))
  return {k: (w, c) for (k, c), w in zip(label(calls).items(), weights)}


def segments(text: str) -> tuple[Segment, ...]:
  """Reads 'full + (local, full)*3 + shared(full)*4' into segments of block names."""
  node, hidden = _tree(text)
  out = []
  for term in _flat(node, ast.Add):
    repeats = 1
    if isinstance(term, ast.BinOp) and isinstance(term.op, ast.Mult):
      count = term.right
      if not (isinstance(count, ast.Constant) and type(count.value) is int and count.value > 0):
        raise SpecError(
          f'a segment repeats a positive whole number of times, got {_source(term, hidden)!r}'
        )
      term, repeats = term.left, count.value
    shared = (
      isinstance(term, ast.Call) and isinstance(term.func, ast.Name) and term.func.id == 'shared'
    )
    if shared:
      if len(term.args) != 1 or term.keywords:
        raise SpecError(
          f'shared(...) takes one block or one group of blocks, got {_source(term, hidden)!r}'
        )
      term = term.args[0]
    names = term.elts if isinstance(term, ast.Tuple) else [term]
    if not names or not all(isinstance(n, ast.Name) for n in names):
      raise SpecError(
        f'a segment is a block name or a group (a, b) of them, got {_source(term, hidden)!r}'
      )
    out.append(Segment(tuple(hidden.get(n.id, n.id) for n in names), repeats, shared))
  return tuple(out)


def names(text: str) -> list[str]:
  """The parts that a spec of any form names, also within others."""
  node, hidden = _tree(text)
  return [hidden.get(n.id, n.id) for n in ast.walk(node) if isinstance(n, ast.Name)]


def outside(text: str) -> list[str]:
  """The code that a spec of any form names, also within others: parts `package.module:Object`, and
  modules given as an argument `module`. Imports nothing.
  """
  node, hidden = _tree(text)
  parts = [hidden[n.id] for n in ast.walk(node) if isinstance(n, ast.Name) and n.id in hidden]
  words = [n for n in ast.walk(node) if isinstance(n, ast.keyword) and n.arg == 'module']
  return parts + [
    n.value.value
    for n in words
    if isinstance(n.value, ast.Constant) and isinstance(n.value.value, str)
  ]


def rewrite(text: str, path: list[str], value: Any) -> str:
  """Sets one argument in a spec: rewrite('clip() | adam()', ['adam', 'b2'], 0.99).

  `path` is [argument], [part, argument] or deeper for nested parts; an unknown part is refused with
  the names there are.
  """
  node, hidden = _tree(text)
  terms = _flat(node, ast.Add)
  if len(terms) > 1 or (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult)):
    parts = weighted(text)
    calls = _rewrite({k: c for k, (_, c) in parts.items()}, path, value, text)
    return ' + '.join(
      ('' if w is None else f'{w!r}*') + str(calls[k]) for k, (w, _) in parts.items()
    )
  calls = label([_call(n, hidden) for n in _flat(node, ast.BitOr)])
  return ' | '.join(map(str, _rewrite(calls, path, value, text).values()))


def _rewrite(calls: dict[str, Call], path: list[str], value: Any, text: str) -> dict[str, Call]:
  head, rest = path[0], path[1:]
  if head not in calls or not rest:
    if len(calls) != 1:
      raise SpecError(
        f'{".".join(path)}: name the part and its argument; {brief(text)} has {", ".join(calls)}'
      )
    head, rest = next(iter(calls)), path
  found = calls[head]
  args = dict(found.args)
  if len(rest) == 1:
    args[rest[0]] = value
  else:
    inner = args.get(rest[0])
    is_part = (
      isinstance(inner, Call)
      or isinstance(inner, tuple)
      and inner
      and all(isinstance(v, Call) for v in inner)
    )
    if not is_part:
      raise SpecError(
        f'{".".join(path)}: no part {rest[0]!r} in {brief(text)}, which has {", ".join(calls)}'
      )
    nested = label(list(inner) if isinstance(inner, tuple) else [inner])
    new = tuple(_rewrite(nested, rest[1:], value, text).values())
    args[rest[0]] = new if isinstance(inner, tuple) else new[0]
  return calls | {head: Call(found.name, tuple(args.items()))}
