"""Collectives of the compiled training step of every recipe family, in small, on slices of v5e.

`python tests/golden/plans.py` shows what changed; with `--write` it renews plans.json. It takes
libtpu and some minutes. A change here is a change of what a pod sends: more bytes or other axes
need a reason in the commit that renews them. Another libtpu may make other programs of the same
step; the file says which one it is from.
"""

import importlib.metadata
import json
import pathlib
import sys

from lmjax import build
from lmjax import config
from lmjax.planning import planned
from lmjax.planning import topologies

FILE = pathlib.Path(__file__).parent / 'plans.json'
SMALL = [
  ('batch_tokens', '1024'),
  ('data.length', '64'),
  ('sample.tokens', '0'),
  ('model.unroll', '1'),
]
LAID = {  # mesh by topology
  'v5e:2x2': [('mesh.data', '4')],
  'v5e:2x4': [('mesh.data', '4'), ('mesh.tensor', '2')],
}
RECIPES = ('quickstart', 'gpt2:tiny', 'llama:tiny', 'bert_tiny', 'ul2_tiny')
CASES = [(r, 'v5e:2x4') for r in RECIPES] + [('gpt2:tiny', 'v5e:2x2')]


def name(recipe: str, topology: str) -> str:
  return f'{recipe} on {topology}'


def measure(recipe: str, topology: str) -> list[dict]:
  """Rows of `traffic.table`."""
  run = build.build(config.resolve(config.load(recipe, [*SMALL, *LAID[topology]])))
  where = topologies.parse(topology)
  plan = planned.compiled(run, where, planned.estimated(run, where), 600.0)
  return list(plan.collectives)


def differences(old: list[dict], new: list[dict]) -> list[str]:
  """What is not equal, one line a row."""
  key = lambda r: (r['kind'], tuple(r['axes'] or ('?',)), r['dtype'])
  old_, new_ = ({key(r): r for r in rows} for rows in (old, new))
  return [
    f'{k[0]} over {" x ".join(k[1])} ({k[2]}): was {_said(old_.get(k))}, is {_said(new_.get(k))}'
    for k in sorted(old_.keys() | new_.keys())
    if old_.get(k) != new_.get(k)
  ]


def _said(row) -> str:
  return 'absent' if row is None else f'{row["count"]} of {row["payload"]:,} bytes in all'


def main(argv: list[str]) -> int:
  old = json.loads(FILE.read_text())['plans'] if FILE.exists() else {}
  new = {name(*case): measure(*case) for case in CASES}
  for key, rows in new.items():
    for line in differences(old.get(key, []), rows):
      print(f'{key}: {line}')
  if '--write' in argv:
    versions = {n: importlib.metadata.version(n) for n in ('jax', 'libtpu')}
    FILE.write_text(json.dumps(dict(versions=versions, plans=new), indent=1) + '\n')
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
