"""--plan: what a config would compute, from shapes alone; no array is made."""

import math

import jax
from rich.console import Console
from rich.table import Table

from lmjax import build as build_lib
from lmjax import flops as flops_lib
from lmjax import mesh_checks
from lmjax.parallel import facts as facts_lib
from lmjax.parallel import mesh as mesh_lib
from lmjax.parallel import remat_bytes
from lmjax.parallel import shard


def piece_bytes(run, placed, tree_of) -> int:
  """Bytes on one device of `tree_of(state)`. placed: all placements, None for one device."""
  if placed is None:
    return build_lib.nbytes(tree_of(run.state_shapes))
  places = jax.tree.leaves(tree_of(placed), is_leaf=build_lib.is_placement)
  shapes = jax.tree.leaves(tree_of(run.state_shapes))
  return sum(math.prod(p.piece) * s.dtype.itemsize for p, s in zip(places, shapes))


def console() -> Console:
  """Lines are as long as they are; a pipe is wide."""
  out = Console(soft_wrap=True, highlight=False)
  return out if out.is_terminal else Console(soft_wrap=True, highlight=False, width=200)


def size(n: float, unit: str = 'B') -> str:
  for prefix in ('', 'k', 'M', 'G', 'T', 'P'):
    if abs(n) < 1000 or prefix == 'P':
      return f'{n:.4g} {prefix}{unit}'
    n /= 1000


def show(resolved: dict) -> int:
  """Prints parameters by group, FLOPs, bytes and the batch. Raises ValueError naming what does not
  fit together.
  """
  run = build_lib.build(resolved)
  mesh = mesh_lib.abstract(run.config['mesh'])
  mesh_checks.devices(run, mesh)
  out = console()
  shapes = Table('parameter', 'shape', 'axes', 'count', box=None)
  for keys, fact, shape in facts_lib.items(run.facts['params'], run.shapes['params']):
    axes = ', '.join(str(n or '-') for n in fact.names)
    shapes.add_row('/'.join(keys), str(shape), axes, f'{math.prod(shape):,}')
  out.print(shapes)
  groups = Table('group', 'parameters', box=None)
  for name, n in build_lib.counts(run).items():
    groups.add_row(name, f'{n:,}')
  out.print(groups)

  f, tokens = flops_lib.per_token(run), resolved['batch_tokens']
  placed, axes = (None, {}) if mesh is None else (run.placements(mesh), mesh.shape)
  params = piece_bytes(run, placed, lambda s: s.params)
  where = (
    ' x '.join(f'{a} {n}' for a, n in axes.items())
    or 'not sharded (config.mesh gives no sizes above 1)'
  )
  rows = run.rows // resolved['micro_batches']
  hidden = rows * run.length * run.model.width * jax.numpy.dtype(run.model.dtype).itemsize
  lines = {
    'batch': f'{run.rows} rows x {run.length} tokens = {tokens:,} tokens, in '
    f'{resolved["micro_batches"]} micro-batches',
    'run': f'{resolved["steps"]:,} steps, {resolved["steps"] * tokens:,} tokens',
    'FLOPs per token (forward + backward)': f'{size(f.step_full, "FLOP")} with all pairs of '
    'positions, '
    f'{size(f.step_causal, "FLOP")} with the allowed ones',
    'FLOPs of the run': f'{size(f.step_full * tokens * resolved["steps"], "FLOP")} / '
    f'{size(f.step_causal * tokens * resolved["steps"], "FLOP")}',
    f'memory of one device, {where}': '',
    '  parameters': size(params),
    '  optimizer state': size(piece_bytes(run, placed, lambda s: s.opt))
    + ', bytes a parameter: '
    + ', '.join(f'{k} {v:.4g}' for k, v in build_lib.state_bytes(run).items() if v),
    '  gradients': size(params),
    '  residual stream of one micro-batch, all layers': size(
      hidden * run.model.depth / shard.sharing(axes, 'batch', 'time', 'layers')
    ),
    '  logits of one micro-batch (float32)': size(
      4 * rows * run.length * run.model.vocab / shard.sharing(axes, 'batch', 'time', 'vocab')
    ),
  }
  for key, value in lines.items():
    out.print(f'{key}: {value}'.rstrip(), markup=False)
  out.print(named_tensors(run, mesh))
  return 0


def named_tensors(run, mesh) -> Table:
  """What `config.model.remat` does with each name, and what it is about."""
  found = remat_bytes.rows(run, mesh)
  title = f'one micro-batch on one device, config.model.remat={run.config["model"]["remat"]!r}'
  table = Table('tensor', 'number', 'bytes if kept', 'it is', 'FLOPs to make it again', box=None)
  table.title, table.title_justify = title, 'left'
  for r in found:
    table.add_row(r.name, str(r.tensors), size(r.bytes), r.fate, size(r.flops, 'FLOP'))
  return table
