"""The fingerprint of the parts that a config uses: a result is stale once one of them changed.

Over the syntax of the part's file and of the room's helpers (`_x.py`) and kernels that it imports,
without comments and docstrings: what cannot change a result makes none stale. The core (training
step, loop, data plan) is watched by its own tests and by the golden metrics, not by this.
"""

import ast
import functools
import hashlib
import importlib.util
import inspect
import pathlib
from typing import Any, Iterator

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
  """Modules of the parts that the specs of a config name, also within others."""
  out = set()
  for key, value in config_lib.flat(resolved).items():
    kind = config_lib.kind_of(key)
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


def _modules(name: str) -> set[str]:
  """A part's module and the helpers it imports, directly or through others."""
  out, todo = set(), [name]
  while todo:
    module = todo.pop()
    if module in out:
      continue
    out.add(module)
    todo += [m for m in _imports(module) if '._' in m or '.kernels.' in m]
  return out


@functools.cache
def _tree(module: str) -> ast.Module:
  return ast.parse(pathlib.Path(importlib.util.find_spec(module).origin).read_text('utf-8'))


def _imports(module: str) -> set[str]:
  found: set[str] = set()
  for node in ast.walk(_tree(module)):
    if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith('lmjax'):
      found |= {f'{node.module}.{a.name}' for a in node.names}
  return {m for m in found if _exists(m)}


@functools.cache
def _exists(module: str) -> bool:
  try:
    return importlib.util.find_spec(module) is not None
  except ModuleNotFoundError:  # a name within a module
    return False


@functools.cache
def _syntax(module: str) -> str:
  tree: Any = _tree(module)
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
