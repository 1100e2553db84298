"""The fingerprint of the parts that a config uses: a result is stale once one of them changed.

Over the syntax of the part's file and of what it imports to compute with: the room's helpers
(`_x.py`), kernels, `lmjax.nn`, and for a part from elsewhere its own package or folder. Comments
and docstrings do not count: what cannot change a result makes none stale. The core (training step,
loop, data plan) is watched by its own tests and by the golden metrics, not by this.
"""

import ast
import functools
import hashlib
import importlib.util
import inspect
import pathlib
import textwrap
from typing import Any, Callable, Iterator

from lmjax import config as config_lib
from lmjax import registry
from lmjax import specs


# Rooms whose parts show in the program of a step.
TRACED = tuple(f'lmjax.{x}.' for x in ('models', 'objectives', 'optim', 'schedules', 'guards'))


def fingerprint(resolved: dict, traced: bool = True) -> str:
  """16 hex digits; traced=False leaves out the parts that show in the program of a step."""
  used = {p for p in parts(resolved) if traced or not p.startswith(TRACED)}
  found = {m: _syntax(m) for part in used for m in _modules(part)}
  text = '\n'.join(f'{m} {d}' for m, d in sorted(found.items()))
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def parts(resolved: dict) -> set[str]:
  """Modules of the parts that the specs of a config name, also within others. What writes samples
  changes no result.
  """
  out = set()
  for key, value in config_lib.flat(resolved).items():
    kind = None if key.startswith('sample.') else config_lib.kind_of(key)
    if kind is not None and isinstance(value, str) and value.strip():
      out |= {module for name in specs.names(value) if (module := _module(kind[0], name))}
  return out


def _module(kind: str, name: str) -> str | None:
  for k in (kind, *_kinds()):
    if name in registry.names(k) or ':' in name:
      return inspect.getmodule(registry.get(k, name).obj).__name__
  return None


def _kinds() -> Iterator[str]:
  from lmjax import kinds

  return iter(kinds.KINDS)


@functools.cache
def _modules(name: str) -> frozenset[str]:
  """A part's module and the helpers it imports, directly or through others."""
  out, todo = set(), [name]
  while todo:
    module = todo.pop()
    if module in out:
      continue
    out.add(module)
    todo += [m for m in _imports(module) if _computes(m)]
  return frozenset(out)


def forget() -> None:
  """Files are read again."""
  for cached in (_modules, _imports, _tree, _syntax):
    cached.cache_clear()


def _computes(module: str) -> bool:
  """Whether what a part imports is a helper of parts, not the core."""
  inside = module.partition('.')[0] == 'lmjax'
  return not inside or '._' in module or module.startswith(('lmjax.kernels.', 'lmjax.nn.'))


@functools.cache
def _tree(module: str) -> ast.Module:
  return ast.parse(pathlib.Path(importlib.util.find_spec(module).origin).read_text('utf-8'))


@functools.cache
def _imports(module: str) -> set[str]:
  found: set[str] = set()
  for node in ast.walk(_tree(module)):
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
      found |= {node.module, *(f'{node.module}.{a.name}' for a in node.names)}
    elif isinstance(node, ast.Import):
      found |= {a.name for a in node.names}
  return {m for m in found if _related(m, module) and _exists(m)}


def _related(module: str, to: str) -> bool:
  """Of the same package, of lmjax, or in the same folder."""
  top = module.partition('.')[0]
  if top in ('lmjax', to.partition('.')[0]):
    return True
  beside = pathlib.Path(importlib.util.find_spec(to).origin).parent / f'{top}.py'
  if not beside.is_file():
    return False
  spec = importlib.util.find_spec(top)
  return spec is not None and spec.origin == str(beside)  # None: a library that is not installed


@functools.cache
def _exists(module: str) -> bool:
  try:
    spec = importlib.util.find_spec(module)
    return spec is not None and (spec.origin or '').endswith('.py')
  except (ModuleNotFoundError, ValueError):  # a name within a module
    return False


def of_function(fn: Callable) -> str:
  """16 hex digits over a function, what it closes over, and the functions of its module that it
  calls.
  """
  todo, found = [fn], {}
  while todo:
    f = inspect.unwrap(todo.pop())
    if f.__qualname__ in found:
      continue
    tree = ast.parse(textwrap.dedent(inspect.getsource(f)).strip().rstrip(','))
    cells = [c.cell_contents for c in f.__closure__ or ()]
    held = [c.__qualname__ if inspect.isfunction(c) else repr(c) for c in cells]
    found[f.__qualname__] = f'{f.__module__} {_digest(tree)} {held} {f.__defaults__}'
    used = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    near = [f.__globals__.get(name) for name in used] + cells
    todo += [g for g in near if inspect.isfunction(g) and g.__module__ == f.__module__]
  return hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()[:16]


@functools.cache
def _syntax(module: str) -> str:
  return _digest(_tree(module))


def _digest(tree: Any) -> str:
  for node in ast.walk(tree):
    body = getattr(node, 'body', None)
    if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
      if isinstance(body[0].value, ast.Constant) and isinstance(body[0].value.value, str):
        body[0].value.value = ''
  return hashlib.sha256(repr(_plain(tree)).encode()).hexdigest()


def _plain(node: Any) -> Any:
  """A tree without what is empty: `ast.dump` differs from one version of Python to the next."""
  if isinstance(node, ast.AST):
    fields = ((k, _plain(v)) for k, v in ast.iter_fields(node) if k not in ('kind', 'ctx'))
    return type(node).__name__, [(k, v) for k, v in fields if v not in (None, [])]
  if isinstance(node, list):
    return [_plain(x) for x in node if getattr(x, 'value', None) != '']  # 3.12 ends f-strings so
  return node if node is None or isinstance(node, (int, float, complex)) else repr(node)
