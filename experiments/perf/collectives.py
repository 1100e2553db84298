"""Bytes that a chip sends in a training step, against the least that its strategy must send.

  python experiments/perf/collectives.py [--only data tensor]

Each strategy's step is compiled ahead of time for eight chips of TPU v5e (extra `[tpu]`; no TPU is
needed), and its collectives are read from the program: loop bodies times trips, bytes on the wire
by the best known algorithms (`lmjax.planning.traffic`). The model has eight layers of width 512,
large enough that statistics of norms and losses do not count, in bfloat16 without remat. The least
of each strategy is a function below; n chips, vectors in bfloat16, sums of gradients of matrices in
float32, of tables in bfloat16.
"""

import argparse
import json
import math
import pathlib
import sys

import jax

from lmjax import build
from lmjax import config
from lmjax import versions
from lmjax.parallel import facts as facts_lib
from lmjax.parallel import mesh as mesh_lib
from lmjax.planning import compile as compile_lib
from lmjax.planning import hlo
from lmjax.planning import planned
from lmjax.planning import topologies
from lmjax.planning import traffic

CHIPS, DEPTH, WIDTH, HEADS, LENGTH, ROWS, VOCAB = 8, 8, 512, 8, 128, 64, 4096
MODEL = {
  'model.width': WIDTH,
  'model.depth': DEPTH,
  'model.mixer': f'gqa(head_dim={WIDTH // HEADS})',
  'model.ffn': 'swiglu(hidden=1408)',
  'model.embed': 'untied()',
  'model.vocab': VOCAB,
  'model.dtype': 'bfloat16',
  'data.length': LENGTH,
  'batch_tokens': ROWS * LENGTH,
  'sample.tokens': 0,
  'mesh.data': 1,
}
HIDDEN = 2 * ROWS * LENGTH * WIDTH  # bytes of the hidden vectors of all tokens


def sizes(run):
  """(W, E): bytes in bfloat16 of the layers' matrices, and of the tables."""
  count = lambda tree: sum(math.prod(x.shape) for x in jax.tree.leaves(tree) if len(x.shape) > 1)
  params = run.shapes['params']
  layers = count({k: v for k, v in params.items() if k.startswith('segment')})
  return 2 * layers, 2 * count(params['embed'])


def replica(run, n):
  """All gradients, reduced and given to all."""
  layers, tables = sizes(run)
  return 2 * (n - 1) / n * (2 * layers + tables)


def data(run, n):
  """ZeRO-3: weights gathered forward and backward, tables once; gradients scattered."""
  layers, tables = sizes(run)
  return (n - 1) / n * (2 * layers + 2 * layers + 2 * tables)


def tensor(run, n):
  """Megatron: two all-reduces a layer each way, one of the embedding, one of the head backward."""
  del run
  return 2 * (n - 1) / n * HIDDEN * (4 * DEPTH + 2)


def sequence(run, n):
  """ZeRO-3, and keys and values to all others forward and backward, their gradients back."""
  keys = 2 * HIDDEN / n  # keys and values of a piece of each row; as many heads as queries
  return data(run, n) + (n - 1) * (2 * keys + 2 * keys) * DEPTH


def expert(run, n):
  """Tokens dealt out to groups, to their experts, back and back, both ways; gradients of what is no
  expert reduced and given to all.
  """
  params = run.shapes['params']
  mine = sum(
    math.prod(shape)
    for _, fact, shape in facts_lib.items(run.facts['params'], params)
    if 'expert' in fact.names
  )
  layers, tables = sizes(run)
  journeys = 8 * DEPTH * HIDDEN / n
  return (n - 1) / n * (journeys + 2 * (2 * (layers - 2 * mine) + tables))


def stage(run, n):
  """Hops of the pipeline and its result to all stages, both ways; tokens looked up from the stages
  that have their rows, and the gradient of the head's input added up over them.
  """
  del run
  hops = HIDDEN / n * (n + n - 1)  # as many micro-batches as stages
  return 2 * hops + 2 * (n - 1) / n * HIDDEN * 4


STRATEGIES = {
  'replica': (dict(replica=CHIPS), replica, {}),
  'data': (dict(data=CHIPS), data, {}),
  'tensor': (dict(tensor=CHIPS), tensor, {}),
  'sequence, ring': (dict(sequence=CHIPS), sequence, {}),
  'sequence, all_gather': (dict(sequence=CHIPS), sequence, {'mesh.context': 'all_gather'}),
  'expert': (dict(expert=CHIPS), expert, {'model.ffn': 'base_layers(experts=8, groups=8)'}),
  'stage': (dict(stage=CHIPS), stage, {}),
}


def measured(name: str, limit: float) -> dict:
  axes, least, more = STRATEGIES[name]
  changes = MODEL | more | {f'mesh.{a}': n for a, n in axes.items()}
  resolved = config.resolve(config.load('quickstart', [(k, str(v)) for k, v in changes.items()]))
  run, topology = build.build(resolved), topologies.parse('v5e:2x4')
  found = compile_lib.compiled(resolved, topology, 0.0, limit)
  mesh = mesh_lib.make(resolved['mesh'], compile_lib.devices(topology))
  table = traffic.table(traffic.collectives(hlo.parse(found.text), mesh, planned.ONCE))
  sent, must = sum(row['wire'] for row in table), least(run, CHIPS)
  return dict(sent=sent, least=round(must), ratio=round(sent / must, 3), collectives=table)


def main(argv=None) -> int:
  p = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  p.add_argument('--only', nargs='+', choices=list(STRATEGIES), default=list(STRATEGIES))
  p.add_argument('--limit', type=float, default=900, help='seconds for one compilation')
  p.add_argument('--out', default=str(pathlib.Path(__file__).with_suffix('.json')))
  flags = p.parse_args(argv)
  out = pathlib.Path(flags.out)
  rows = json.loads(out.read_text())['strategies'] if out.exists() else {}
  for name in flags.only:
    rows[name] = measured(name, flags.limit)
    sent, must = (rows[name][k] / 2**20 for k in ('sent', 'least'))
    print(f'{name}: {sent:.1f} MiB sent, {must:.1f} at least, {rows[name]["ratio"]}')
    for row in rows[name]['collectives']:
      print('   ', row)
    found = {p: versions.package(p) for p in ('lmjax', 'jax', 'libtpu', 'flax')}
    record = dict(command='python experiments/perf/collectives.py', versions=found, strategies=rows)
    out.write_text(json.dumps(record, indent=2) + '\n')
  return 0


if __name__ == '__main__':
  sys.exit(main())
