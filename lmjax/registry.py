"""Parts by kind and name. One part is one file; the file's name is the part's name.

  @register('norm')                       # in lmjax/models/norms/rms_norm.py
  class RmsNorm(nn.Module): ...

  part = make('norm', 'rms_norm(eps=1e-5)')   # a handle; a wrong name or argument is refused here
  module = part(name='norm_mixer')            # build it

Only the files that a config names are imported. `kinds.KINDS` lists the kinds and their folders.
"""

import dataclasses
import difflib
import importlib
import importlib.util
import inspect
import pkgutil
import types
import typing
from typing import Any, Callable, Mapping

from lmjax import kinds
from lmjax import specs
from lmjax.specs import SpecError, brief

LARGEST = {int: 2**31 - 1, float: 3.4e38}  # devices count and calculate in 32 bits

_PARTS: dict[tuple[str, str], 'Entry'] = {}


@dataclasses.dataclass(frozen=True)
class Entry:
  """A registered part: its object and the facts it declares (a fact may be a function of its
  arguments).
  """

  kind: str
  name: str
  obj: Callable
  facts: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Part:
  """A part with its arguments, checked but not built; calling it builds.

  Hashable, hence static under jit. The context counts for equality (two layers may differ in their
  mixer alone), not for the hash (it may hold what has none).
  """

  kind: str
  name: str
  obj: Callable
  args: tuple[tuple[str, Any], ...]
  context: tuple[tuple[str, Any], ...] = dataclasses.field(default=(), hash=False)

  def __call__(self, **extra):
    return self.obj(**dict(self.args), **dict(self.context), **extra)

  def fact(self, key: str) -> Any:
    value = facts_of(self.kind, self.name)[key]
    return value(dict(self.args)) if callable(value) else value

  @property
  def spec(self) -> str:
    """The spec with every default filled in."""
    return str(self)

  def __str__(self) -> str:
    return str(specs.Call(self.name, tuple((k, _as_spec(v)) for k, v in self.args)))


def _as_spec(value):
  if isinstance(value, Part):
    return specs.Call(value.name, tuple((k, _as_spec(v)) for k, v in value.args))
  if isinstance(value, Chain):
    return tuple(_as_spec(p) for _, p in value.parts)
  return value


@dataclasses.dataclass(frozen=True)
class Chain:
  """Named parts applied one after another."""

  parts: tuple[tuple[str, Part], ...]

  def items(self):
    return self.parts

  def __str__(self) -> str:
    return ' | '.join(str(p) for _, p in self.parts)


def register(kind: str, **facts) -> Callable:
  """Decorator: the object becomes the part of this kind named like its file.

  Facts are what others may ask of the part without building it; `kinds.KINDS[kind].facts` lists the
  ones that a kind knows.
  """
  known = kinds.KINDS[kind].facts
  unknown = sorted(set(facts) - set(known))
  if unknown:
    raise ValueError(f'{kind} has no fact {unknown[0]!r}; it has {", ".join(known) or "none"}')

  def add(obj):
    module = obj.__module__
    inside = module.startswith(kinds.KINDS[kind].folder + '.')
    name = module.rsplit('.', 1)[-1] if inside else f'{module}:{obj.__name__}'
    old = _PARTS.get((kind, name))
    if old is not None and old.obj.__qualname__ != obj.__qualname__:
      raise ValueError(
        f'{kind} {name!r} is registered twice: {old.obj.__qualname__} and {obj.__qualname__}'
      )
    _PARTS[kind, name] = Entry(kind, name, obj, {**known, **facts})
    return obj

  return add


def names(kind: str) -> list[str]:
  """The parts of a kind: the files of its folder."""
  folder = kinds.KINDS[kind].folder
  if importlib.util.find_spec(folder) is None:
    return []
  path = importlib.import_module(folder).__path__
  return sorted(m.name for m in pkgutil.iter_modules(path) if not m.name.startswith('_'))


def nearest(word: str, words, otherwise: str = '') -> str:
  """'; did you mean x?' or `otherwise`, such as the full stop before a sentence that follows."""
  close = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
  return f'; did you mean {close[0]!r}?' if close else otherwise


def get(kind: str, name: str) -> Entry:
  """Finds a part, importing its file. Raises SpecError with the nearest name."""
  if kind not in kinds.KINDS:
    raise SpecError(
      f'no kind {kind!r}{nearest(kind, kinds.KINDS, ";")} kinds: {", ".join(kinds.KINDS)}'
    )
  if ':' in name:
    return _outside(kind, name)
  if (kind, name) not in _PARTS:
    have = names(kind)
    if name not in have:
      raise SpecError(
        f'no {kind} named {brief(name)}{nearest(name, have, ".")} There are: {", ".join(have)}'
      )
    importlib.import_module(f'{kinds.KINDS[kind].folder}.{name}')
  return _PARTS[kind, name]


def _outside(kind: str, name: str) -> Entry:
  module_name, _, attribute = name.partition(':')
  if not all(p.isidentifier() for p in [*module_name.split('.'), attribute]):
    raise SpecError(f'{kind} {brief(name)}: a part outside lmjax is named package.module:Object')
  try:
    module = importlib.import_module(module_name)
  except ImportError as e:
    raise SpecError(f'{kind} {name!r}: cannot import {module_name}: {e}') from None
  if not hasattr(module, attribute):
    have = [n for n in vars(module) if not n.startswith('_')]
    raise SpecError(
      f'{kind} {name!r}: {module_name} has no {attribute!r}{nearest(attribute, have)}'
    )
  obj = getattr(module, attribute)
  others = [e.kind for e in _PARTS.values() if e.obj is obj and e.kind != kind]
  if others:
    raise SpecError(f'{kind} {name!r}: this part is registered as {others[0]}')
  try:
    inspect.signature(obj)
  except (TypeError, ValueError):  # not callable, or its arguments are not known
    raise SpecError(
      f'{kind} {name!r}: a class or function written in Python is expected, not '
      f'{type(obj).__name__}'
    ) from None
  return _PARTS.get((kind, name)) or Entry(kind, name, obj, kinds.KINDS[kind].facts)


def facts_of(kind: str, name: str) -> Mapping[str, Any]:
  return get(kind, name).facts


def signature(entry: Entry) -> dict[str, inspect.Parameter]:
  """What a config may set: the part's parameters less the framework's own and the context."""
  skip = {'parent', 'name', 'self'} | set(kinds.KINDS[entry.kind].context)
  params = inspect.signature(entry.obj).parameters
  return {
    k: p
    for k, p in params.items()
    if k not in skip and p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
  }


def make(kind: str, spec: 'str | specs.Call', **context) -> Part:
  """Checks a spec against the part's signature and returns its handle.

  Context (see `kinds.KINDS[kind].context`) is handed to parts whose signature asks for it.
  """
  call = spec if isinstance(spec, specs.Call) else specs.call(spec)
  entry = get(kind, call.name)
  params = signature(entry)
  given = dict(call.args)
  for key in given:
    if key in kinds.KINDS[kind].context:
      raise SpecError(
        f'{kind} {call.name}: {brief(key)} is set by the config around it, not as an argument'
      )
    if key not in params:
      raise SpecError(
        f'{kind} {call.name} has no argument {brief(key)}{nearest(key, params, ".")} '
        f'It takes: {", ".join(params) or "none"}'
      )
  args = []
  for key, param in params.items():
    if key in given:
      value = _typed(f'{call.name}.{key}', given[key], param.annotation, context)
    elif param.default is not inspect.Parameter.empty:
      value = _typed(f'{call.name}.{key}', param.default, param.annotation, context)
    else:
      raise SpecError(f'{kind} {call.name} needs the argument {key!r}')
    args.append((key, value))
  asked = inspect.signature(entry.obj).parameters
  unknown = sorted(set(context) - set(kinds.KINDS[kind].context))
  assert not unknown, f'{kind} has no context {unknown}'
  missing = [
    k
    for k in kinds.KINDS[kind].context
    if k in asked and k not in context and asked[k].default is inspect.Parameter.empty
  ]
  part = Part(
    kind, call.name, entry.obj, tuple(args), tuple((k, v) for k, v in context.items() if k in asked)
  )
  if missing and context:
    raise AssertionError(f'{kind} {call.name} asks for {missing}, which was not provided')
  check = getattr(entry.obj, 'check', None)
  if check is not None:
    try:
      check(**dict(args))
    except ValueError as e:
      raise SpecError(f'{kind} {call.name}: {specs.cut(str(e), 500)}') from None
  return part


def make_chain(kind: str, spec: str, **context) -> Chain:
  """Reads 'a() | b()' into named parts."""
  return Chain(tuple((k, make(kind, c, **context)) for k, c in specs.chain(spec).items()))


def _typed(where: str, value: Any, annotation: Any, context: Mapping[str, Any]) -> Any:
  """Checks an argument against its annotation; integral floats pass for integers, integers for
  floats.
  """
  if annotation is inspect.Parameter.empty:
    return value
  kind = None
  if typing.get_origin(annotation) is typing.Annotated:
    annotation, kind = typing.get_args(annotation)[:2]
  if kind is not None:  # a nested part
    if isinstance(value, (Part, Chain)):
      return value
    if value is None and types.NoneType in typing.get_args(annotation):
      return None
    inner = {k: v for k, v in context.items() if k in kinds.KINDS[kind].context}
    if isinstance(value, str):
      value = specs.call(value)
    if isinstance(value, tuple) and value and all(isinstance(v, specs.Call) for v in value):
      if annotation is not Any and Chain not in (annotation, *typing.get_args(annotation)):
        raise SpecError(f'{where}={brief(value)}: one {kind} is expected here, not a chain')
      return Chain(tuple((k, make(kind, c, **inner)) for k, c in specs.label(list(value)).items()))
    if isinstance(value, specs.Call):
      return make(kind, value, **inner)
    raise SpecError(f'{where}={brief(value)}: a {kind} is expected, such as {names(kind)[0]}()')
  if isinstance(value, specs.Call) and not value.args:
    word = specs.cut(value.name, specs.LONGEST)
    raise SpecError(f'{where}={word}: write text in quotes, {where}="{word}"')
  accepted = (
    typing.get_args(annotation)
    if isinstance(annotation, types.UnionType) or (typing.get_origin(annotation) is typing.Union)
    else (annotation,)
  )
  for t in accepted:
    ok, out = _match(value, t)
    if ok:
      most = LARGEST.get(type(out))
      if most is not None and abs(out) > most:
        raise SpecError(f'{where}={brief(value)}: at most {most} in size is expected')
      return out
  wanted = ' or '.join(_words(t) for t in accepted)
  raise SpecError(f'{where}={brief(value)} is not accepted: {wanted} is expected')


def _words(wanted: Any) -> str:
  if typing.get_origin(wanted) is typing.Literal:
    return ' or '.join(map(repr, typing.get_args(wanted)))
  return 'None' if wanted is type(None) else getattr(wanted, '__name__', str(wanted))


def _match(value: Any, wanted: Any) -> tuple[bool, Any]:
  origin = typing.get_origin(wanted)
  if origin is typing.Literal:
    return value in typing.get_args(wanted), value
  if origin is tuple or wanted is tuple:
    return isinstance(value, tuple), value
  if wanted is type(None):
    return value is None, value
  if wanted is bool:
    return isinstance(value, bool), value
  if wanted is int:
    if isinstance(value, float) and value.is_integer():
      return True, int(value)
    return isinstance(value, int) and not isinstance(value, bool), value
  if wanted is float:
    return isinstance(value, (int, float)) and not isinstance(value, bool), (
      float(value) if isinstance(value, (int, float)) else value
    )
  if wanted is Any:
    return True, value
  return isinstance(wanted, type) and isinstance(value, wanted), value
