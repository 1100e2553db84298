"""Settings of recipes for named slices (`SIZE@SLICE`): does each fit by the plan?

python experiments/plans/slices.py                # estimate and compile all, half an hour
python experiments/plans/slices.py --only llama   # those whose names begin so; others stay
python experiments/plans/slices.py --no-compile   # estimates alone, minutes
python experiments/plans/slices.py --table        # the table of slices.json
"""

import argparse
import importlib.util
import pathlib
import sys

import _plans
from lmjax import config as config_lib

FILE = pathlib.Path(__file__).parent / 'slices.json'


def settings() -> list[str]:
  """RECIPE:SIZE@SLICE of all recipes."""
  out = []
  for name in config_lib.recipes():
    spec = importlib.util.spec_from_file_location(name, config_lib.folder() / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    table = getattr(module, 'SLICES', {})
    out += [f'{name}:{size}@{where}' for size, found in table.items() for where in found]
  return out


def table(found: dict) -> str:
  """The table of the README, in Markdown."""
  names = 'recipe', 'mesh', 'planned', 'peak / usable GiB', 'fits', 'bound', 'MFU', 'days'
  lines = [f'| {" | ".join(names)} |', '|' + ' --- |' * len(names)]
  for name, row in found.items():
    p = row.get('compiled') or row['estimated']
    mesh = ' x '.join(f'{a} {n}' for a, n in p['mesh'].items())
    days = p['tokens'] * p['steps'] / p['tokens_per_second'] / 86_400
    lines.append(
      f'| `{name}` | {mesh} | {p["source"]} | {_plans.room(p)} | {p["times"]["bound"]} | '
      f'{p["mfu_full"]:.0%} | {days:,.0f} |'
    )
  return '\n'.join(lines)


def main(argv=None) -> int:
  p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  p.add_argument('--only', default='', help='beginning of a name, RECIPE:SIZE@SLICE')
  p.add_argument('--no-compile', action='store_true')
  p.add_argument('--table', action='store_true')
  p.add_argument('--seconds', type=float, default=1200.0, help='for compiling a row')
  flags = p.parse_args(argv)
  found, names = _plans.read(FILE), settings()
  for name in names:
    if flags.table or not name.startswith(flags.only):
      continue
    resolved = config_lib.resolve(config_lib.load(name))
    new = _plans.measure(resolved, name.partition('@')[2], not flags.no_compile, flags.seconds)
    found[name] = found.get(name, {}) | new
    _plans.write(FILE, found, names)
    print(f'{name}: done', flush=True)
  print(table({k: found[k] for k in names if k in found}))
  return 0


if __name__ == '__main__':
  sys.exit(main())
