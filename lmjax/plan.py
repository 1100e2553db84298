"""--plan: what a config would compute, from shapes alone; no array is made."""

import math

import jax
from rich.console import Console
from rich.table import Table

from lmjax import build as build_lib
from lmjax import checks
from lmjax import flops as flops_lib
from lmjax.parallel import facts as facts_lib
from lmjax.parallel import mesh as mesh_lib
from lmjax.parallel import shard


def piece_bytes(run, tree_of) -> tuple[int, dict[str, int]]:
  """Bytes on one device of `tree_of(state)` on the config's mesh, and the mesh's axes ({} for one
  device).
  """
  mesh = mesh_lib.abstract(run.config['mesh'])
  if mesh is None:
    return build_lib.nbytes(tree_of(run.state_shapes)), {}
  checks.devices(run, mesh)
  placed = jax.tree.leaves(tree_of(run.placements(mesh)), is_leaf=build_lib.is_placement)
  shapes = jax.tree.leaves(tree_of(run.state_shapes))
  return sum(math.prod(p.piece) * s.dtype.itemsize for p, s in zip(placed, shapes)), dict(
    mesh.shape
  )


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
  console = Console(soft_wrap=True, highlight=False)
  if not console.is_terminal:
    console = Console(soft_wrap=True, highlight=False, width=200)
  shapes = Table('parameter', 'shape', 'axes', 'count', box=None)
  for keys, fact, shape in facts_lib.items(run.facts['params'], run.shapes['params']):
    axes = ', '.join(str(n or '-') for n in fact.names)
    shapes.add_row('/'.join(keys), str(shape), axes, f'{math.prod(shape):,}')
  console.print(shapes)
  groups = Table('group', 'parameters', box=None)
  for name, n in build_lib.counts(run).items():
    groups.add_row(name, f'{n:,}')
  console.print(groups)

  f, tokens = flops_lib.per_token(run), resolved['batch_tokens']
  params, axes = piece_bytes(run, lambda s: s.params)
  sharing = math.prod(axes.get(a, 1) for a in shard.RULES['batch'])
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
    '  optimizer state': size(piece_bytes(run, lambda s: s.opt)[0])
    + ', bytes a parameter: '
    + ', '.join(f'{k} {v:.4g}' for k, v in build_lib.state_bytes(run).items() if v),
    '  gradients': size(params),
    '  residual stream of one micro-batch, all layers': size(hidden * run.model.depth / sharing),
    '  logits of one micro-batch (float32)': size(
      4 * rows * run.length * run.model.vocab / sharing
    ),
  }
  for key, value in lines.items():
    console.print(f'{key}: {value}'.rstrip(), markup=False)
  return 0
