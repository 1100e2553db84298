"""--plan=search: meshes, remat and micro-batches for a model on a topology, best first.

Every mesh that the model, the batch and the chips allow is estimated from its trace; the best ones
again with other remat settings; what is estimated to fit is ranked by the estimated step, and the
best are compiled where libtpu is there, as far as the time goes. Micro-batches are as few as fit.
None of the three changes what is computed.
"""

import dataclasses
import itertools
import math
import shlex
import time
from typing import Any, Iterator

from rich.table import Table

from lmjax import build as build_lib
from lmjax import mesh_checks
from lmjax.parallel import facts as facts_lib
from lmjax.parallel import mesh as mesh_lib
from lmjax.parallel import shard
from lmjax.planning import compile as compile_lib
from lmjax.planning import planned
from lmjax.planning import topologies

REMATS = ('none', 'names(mixer_out, ffn_out)', 'dots', 'full')
LARGEST = {'tensor': 16, 'sequence': 16, 'stage': 16}  # of axes that talk in every layer
TIGHT = 0.97  # of the memory, above which an estimate counts as too large
TRIED = 4  # meshes whose remat is searched
COMPILED, ENOUGH = 3, 30  # plans that are compiled at most; seconds left for another


@dataclasses.dataclass(frozen=True)
class Candidate:
  """A setting with its plan."""

  settings: dict[str, Any]
  run: build_lib.Run
  plan: planned.Plan

  def flags(self) -> str:
    """What to paste."""
    return ' '.join(f'--config.{k}={shlex.quote(str(v))}' for k, v in self.settings.items())


def first(run: build_lib.Run, topology: topologies.Topology) -> planned.Plan:
  """The estimate of the config as it is. Raises ValueError that names meshes which would do."""
  try:
    mesh = planned.mesh_of(run, topology)
  except ValueError as e:
    certain = (m for m in meshes(run, topology) if not set(m) & set(mesh_lib.PARTITIONED))
    found = [_flags(run, m) for m in itertools.islice(certain, 4)]
    hint = f'; of this model {" or ".join(found)} would do' if found else ''
    raise ValueError(f'{e}{hint}') from None
  return planned.estimated(run, topology, mesh)


def _flags(run: build_lib.Run, sizes: dict[str, int]) -> str:
  return ' '.join(f'config.{k}={v}' for k, v in changed(run, sizes).items()) or 'one chip'


def changed(run: build_lib.Run, sizes: dict[str, int]) -> dict[str, Any]:
  """Settings that give the config this mesh; axes that it sets and the mesh lacks among them."""
  given, wanted = run.config['mesh'], _with(run, sizes).config['mesh']
  kept = lambda a: a in sizes or given[a] != wanted[a]
  return {f'mesh.{a}': n for a, n in wanted.items() if kept(a)}


def excess(run: build_lib.Run, plan: planned.Plan, seconds: float) -> str:
  """By how much a plan does not fit, and what would."""
  over = plan.peak - plan.topology.chip.usable
  text = (
    f'the step does not fit: a chip of {plan.topology} needs {plan.peak / 2**30:.2f} GiB and has '
    f'{plan.topology.chip.usable / 2**30:.2f} for programs, {over / 2**30:.2f} too little'
  )
  found = candidates(run, plan.topology, min(seconds, 60.0))
  if found:
    return f'{text}; by estimate this would fit: {found[0].flags()}'
  return (
    f'{text}; no mesh, remat or micro-batches would fit by estimate, so that more chips are needed'
  )


def meshes(run: build_lib.Run, topology: topologies.Topology) -> Iterator[dict[str, int]]:
  """Sizes of the axes of every mesh that model, batch and chips allow; few axes first, and
  pipelines and context parallelism behind the others."""
  experts = any(
    'expert' in f.names for _, f, _ in facts_lib.items(run.facts['params'], run.shapes['params'])
  )
  across = topology.slices if topology.chip.tpu else 1
  if topology.chips == 1:
    yield {}
    return
  late = lambda axes: any(a in mesh_lib.PARTITIONED for a in axes)
  for axes in sorted(mesh_lib.COMBINATIONS, key=lambda axes: (late(axes), len(axes))):
    if 'expert' in axes and not experts or (across > 1) != ('replica' in axes):
      continue
    for sizes in _split(topology.chips // across, [a for a in axes if a != 'replica']):
      found = {'replica': across, **sizes} if across > 1 else sizes
      if found and _allowed(run, found):
        yield found


def _split(n: int, axes: list[str]) -> Iterator[dict[str, int]]:
  """Sizes above 1 of these axes whose product is n."""
  if len(axes) <= 1:
    if len(axes) == (n > 1) and n <= LARGEST.get(axes[0] if axes else '', n):
      yield dict.fromkeys(axes, n)
    return
  *others, last = axes
  for k in range(2, n // 2 + 1):
    if n % k == 0 and k <= LARGEST.get(last, n):
      for sizes in _split(n // k, others):
        yield sizes | {last: k}


def _allowed(run: build_lib.Run, sizes: dict[str, int]) -> bool:
  """By sizes alone; whether chips can be laid out so, and whether layers can be cut into stages or
  rows into sequences (which takes a trace), is seen when it is tried.
  """
  other = _with(run, sizes)
  try:
    mesh = mesh_lib.abstract(other.config['mesh'])
    if mesh is not None and set(sizes) & set(mesh_lib.PARTITIONED):
      other.placements(mesh)
    elif mesh is not None:
      mesh_checks.devices(other, mesh)
  except ValueError:
    return False
  return True


def _with(run: build_lib.Run, sizes: dict[str, int]) -> build_lib.Run:
  """The same run on another mesh."""
  mesh = run.config['mesh'] | dict.fromkeys(mesh_lib.AXES, 1) | sizes
  if any(a in mesh_lib.PARTITIONED for a in sizes):
    mesh['mode'] = 'auto'
  config = run.config | {'mesh': mesh}
  if 'stage' in sizes:  # a pipeline does not sample
    config['sample'] = config['sample'] | {'tokens': 0}
  return dataclasses.replace(run, config=config)


class Search:
  """Estimates by settings, within a limit of time."""

  def __init__(self, run: build_lib.Run, topology: topologies.Topology, seconds: float):
    self.run, self.topology = run, topology
    self.until = time.monotonic() + seconds
    self.built = {(run.config['model']['remat'], run.config['micro_batches']): run}

  def over(self) -> bool:
    return time.monotonic() > self.until

  def build(self, remat: str, micro: int) -> build_lib.Run:
    key = remat, micro
    if key not in self.built:
      c = self.run.config
      other = c | {'micro_batches': micro, 'model': c['model'] | {'remat': remat}}
      self.built[key] = build_lib.build(other)
    return self.built[key]

  def try_(self, sizes: dict[str, int], remat: str) -> Candidate | None:
    """The plan with the fewest micro-batches that fit; None where none do, or cannot be traced."""
    sharing = shard.sharing(sizes)
    if self.run.rows % sharing:
      return None
    rows = self.run.rows // sharing
    micro = 1
    while micro <= rows and not self.over():
      if rows % micro:
        micro += 1
        continue
      run = _with(self.build(remat, micro), sizes)
      try:
        plan = planned.estimated(run, self.topology)
      except (ValueError, NotImplementedError, AssertionError):  # chips that do not lie so
        return None
      room = TIGHT * self.topology.chip.usable
      if plan.peak <= room:
        return Candidate(self.settings(sizes, remat, micro), run, plan)
      fixed = sum(plan.state.values()) + plan.gradients
      if fixed > room:
        return None
      micro = max(micro + 1, math.ceil(micro * (plan.peak - fixed) / (room - fixed)))
    return None

  def settings(self, sizes: dict[str, int], remat: str, micro: int) -> dict[str, Any]:
    out = changed(self.run, sizes) | {'model.remat': remat, 'micro_batches': micro}
    samples = 'stage' in sizes and self.run.config['sample']['tokens']
    return out | {'sample.tokens': 0} if samples else out


def candidates(
  run: build_lib.Run, topology: topologies.Topology, seconds: float
) -> list[Candidate]:
  """What is estimated to fit, the fastest first."""
  search = Search(run, topology, 0.7 * seconds)
  given = run.config['model']['remat']
  found: list[tuple[dict[str, int], Candidate]] = []
  for sizes in meshes(run, topology):
    one = search.try_(sizes, 'full')
    if one is not None:
      found.append((sizes, one))
    if search.over():
      break
  found.sort(key=lambda f: f[1].plan.times.step)
  out = [c for _, c in found]
  search.until += 0.3 * seconds
  for sizes, _ in found[:TRIED]:
    for remat in dict.fromkeys((given, *REMATS)):
      if remat != 'full' and not search.over():
        one = search.try_(sizes, remat)
        out += [] if one is None else [one]
  return sorted(out, key=lambda c: c.plan.times.step)


def verified(found: list[Candidate], topology: topologies.Topology, seconds: float):
  """[(candidate, its compiled plan)] of the best, as far as the time goes."""
  out, until = [], time.monotonic() + seconds
  for c in found[:COMPILED]:
    left = until - time.monotonic()
    if left < ENOUGH:
      break
    try:
      out.append((c, planned.compiled(c.run, topology, c.plan, left)))
    except ValueError as e:
      out.append((c, str(e)))
  return out


def show(resolved: dict, topology: str, *, json_file: str, seconds: float) -> int:
  """Prints the search. Raises ValueError where nothing fits."""
  from lmjax.planning import show as show_lib

  where, run = topologies.parse(topology), build_lib.build(resolved)
  out = show_lib.console()
  until = time.monotonic() + seconds
  found = candidates(run, where, 0.4 * seconds)
  if not found:
    raise ValueError(
      f'--topology={where}: no mesh, remat or number of micro-batches is estimated to fit into '
      f'{where.chip.usable / 2**30:.2f} GiB a chip; more chips, or a smaller batch, are needed'
    )
  compiles = where.chip.tpu and compile_lib.available()
  checked = verified(found, where, until - time.monotonic()) if compiles else []
  out.print(listing(found[:10], checked))
  plans = [(c, p) for c, p in checked if isinstance(p, planned.Plan) and p.fits]
  plans.sort(key=lambda item: item[1].times.step)
  missing = where.chip.tpu and not compiles
  reason = compile_lib.MISSING if missing else ''
  if not plans:  # what was compiled will not do
    seen = {id(c) for c, _ in checked}
    plans = [(c, c.plan) for c in found if id(c) not in seen]
    if compiles and not checked:
      reason = f'nothing was compiled: --plan_seconds={seconds:g} leave no time for it'
      out.print(f'\n{reason}', markup=False)
    if checked:
      reason = f'none of the best {len(checked)} will do: {_why(checked[0][1])}'
      out.print(f'\n{reason}', markup=False)
    if not plans:
      raise ValueError(f'--topology={where}: what is estimated to fit was refused when compiled')
  best, plan = plans[0]
  out.print(f'\nbest, {plan.source}: {best.flags()}\n', markup=False)
  show_lib.write(out, best.run, plan)
  if json_file:
    rest = [c.plan for c in found[:10] if c is not best]
    show_lib.save(json_file, plan, *rest, reason=reason)
  if missing:
    raise ValueError(compile_lib.MISSING)
  return 0


def _why(compiled: planned.Plan | str) -> str:
  return compiled if isinstance(compiled, str) else 'compiled, the step does not fit'


def listing(found: list[Candidate], checked) -> Table:
  """The candidates, the fastest by estimate first, and what compiling said."""
  said = {id(c): p for c, p in checked}
  table = Table('step', 'MFU', 'peak GiB', 'compiled: step', 'peak GiB', 'settings', box=None)
  for c in found:
    p, plan = said.get(id(c)), c.plan
    more = ('', '') if p is None else ('failed', str(p)[:60])
    if isinstance(p, planned.Plan):
      more = f'{p.times.step:.4g} s' if p.fits else 'does not fit', f'{p.peak / 2**30:.2f}'
    table.add_row(
      f'{plan.times.step:.4g} s',
      f'{plan.mfu(plan.times.step)[0]:.1%}',
      f'{plan.peak / 2**30:.2f}',
      *more,
      ' '.join(f'{k}={v}' for k, v in c.settings.items()),
    )
  return table
