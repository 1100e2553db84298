"""Plans as records, shared by the scripts of this folder."""

import json
import pathlib
from typing import Any

from lmjax import build as build_lib
from lmjax import versions
from lmjax.planning import planned
from lmjax.planning import show
from lmjax.planning import topologies


PACKAGES = ('lmjax', 'jax', 'libtpu', 'flax')


def measure(resolved: dict, topology: str, compiles: bool, seconds: float) -> dict[str, Any]:
  """Plans of a config on a topology: estimated, and compiled where that is asked and possible.
  Raises ValueError.
  """
  where, run = topologies.parse(topology), build_lib.build(resolved)
  guess = planned.estimated(run, where)
  out = dict(
    parameters=build_lib.counts(run)['total'], versions={p: versions.package(p) for p in PACKAGES}
  )
  out['estimated'] = show.record(guess)
  if compiles and where.chip.tpu:
    out['compiled'] = show.record(planned.compiled(run, where, guess, seconds))
  return out


def read(file: pathlib.Path) -> dict[str, Any]:
  return json.loads(file.read_text())['rows'] if file.exists() else {}


def write(file: pathlib.Path, rows: dict[str, Any], order) -> None:
  """Known rows in their order; others are dropped."""
  known = {k: rows[k] for k in order if k in rows}
  file.write_text(json.dumps(dict(rows=known), indent=1) + '\n')


def room(p: dict) -> str:
  """Cells of a table: peak, and whether it fits."""
  gib = lambda n: f'{n / 2**30:.1f}'
  return f'{gib(p["peak"])} / {gib(p["usable"])} | {"yes" if p["fits"] else "no"}'
