"""Rows of parts that have a file of their own, as `python -m lmjax.new` writes it:
`rows/rows_<kind>_<name>.py`, and the same in the folders that LMJAX_CONTRACT_ROWS names (divided as
in PATH), which are packages outside lmjax.

Each has KIND, NAME (what a spec says) and what the suite of its kind asks for, mostly SPECS, the
rows that are tried, and a float64 reference.
"""

import functools
import importlib.util
import os
import pathlib
import sys

from lmjax import registry

HERE = pathlib.Path(__file__).parent / 'rows'


def _folders() -> list[pathlib.Path]:
  outside = [
    pathlib.Path(f) for f in os.environ.get('LMJAX_CONTRACT_ROWS', '').split(os.pathsep) if f
  ]
  for folder in outside:
    assert folder.is_dir(), f'LMJAX_CONTRACT_ROWS: no folder {folder}'
    top = folder.absolute()
    while (top / '__init__.py').is_file():
      top = top.parent
    sys.path.insert(0, str(top))
  return [HERE, *outside]


@functools.cache
def _modules() -> tuple:
  out = []
  for path in (p for folder in _folders() for p in sorted(folder.glob('rows_*.py'))):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    out.append(module)
  return tuple(out)


def values(kind: str, attribute: str) -> dict:
  """{part name: what its file calls `attribute`}."""
  return {m.NAME: getattr(m, attribute) for m in _modules() if m.KIND == kind}


def specs(kind: str) -> tuple[str, ...]:
  return tuple(s for rows in values(kind, 'SPECS').values() for s in rows)


def names(kind: str) -> set[str]:
  """The registered parts, and those outside that have a file."""
  return set(registry.names(kind)) | {n for n in values(kind, 'NAME') if ':' in n}
