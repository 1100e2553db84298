"""--list and --explain: what parts there are, and what one part is."""

import importlib
import inspect

from lmjax import kinds
from lmjax import registry


def first_line(kind: str, name: str) -> str:
  entry = registry.get(kind, name)
  module = inspect.getmodule(entry.obj)
  paragraph = (module.__doc__ or entry.obj.__doc__ or '').strip().split('\n\n')[0]
  return ' '.join(paragraph.split())


def list_parts(kind: str) -> int:
  """Prints the kinds, or the parts of one kind with the first line of their documentation."""
  if not kind:
    for name, k in kinds.KINDS.items():
      print(f'{name:13} {k.what}\n{"":13} {", ".join(registry.names(name)) or "none yet"}')
    return 0
  if kind not in kinds.KINDS and kind.endswith('s') and kind[:-1] in kinds.KINDS:
    kind = kind[:-1]
  if kind not in kinds.KINDS:
    raise ValueError(
      f'--list {kind}: no such kind{registry.nearest(kind, kinds.KINDS, ".")} There are: '
      f'{", ".join(kinds.KINDS)}'
    )
  for name in registry.names(kind):
    print(f'{name:16} {first_line(kind, name)}')
  return 0


def explain(which: str) -> int:
  """Prints a part's signature, facts and documentation."""
  kind, _, name = which.partition(':')
  if not name:
    raise ValueError(f'--explain {which}: write kind:name, as in mixer:gqa')
  entry = registry.get(kind, name)
  print(f'{kind} {name}   ({entry.obj.__module__})\n')
  for key, p in registry.signature(entry).items():
    default = 'needed' if p.default is inspect.Parameter.empty else repr(p.default)
    print(f'  {key} = {default}')
  facts = {k: ('depends on its arguments' if callable(v) else v) for k, v in entry.facts.items()}
  if facts:
    print('\nfacts: ' + ', '.join(f'{k}={v}' for k, v in facts.items()))
  print(
    '\n'
    + inspect.cleandoc(
      importlib.import_module(entry.obj.__module__).__doc__ or entry.obj.__doc__ or ''
    )
  )
  return 0
