"""Runs that arms of this experiment depend on, into $LMJAX_MIXTURES.

  python experiments/mixtures/prepare.py

reference, doremi, doge: proxies of 300 steps on equal weights; skill_0 ... skill_2: 45 steps on one
source each; graph.json: what Skill-It reads. The same command goes on where it was stopped.
"""

import os
import pathlib
import sys

from lmjax import main as main_lib
from lmjax.data.mixtures import _graph
from lmjax.experiment import checks
from lmjax.experiment import trials

HERE = pathlib.Path(__file__).resolve().parent
STEPS, SKILL_STEPS, RATE = 300, 45, 1e-2


def run(folder: pathlib.Path, **changes) -> None:
  """One run of the experiment's model and data; raises SystemExit where it fails."""
  e = checks.load(HERE)
  changes = {k.replace('__', '.'): v for k, v in changes.items()}
  all_of = {**e.changes, **e.baseline.changes, 'peak_lr': RATE, 'steps': STEPS, **changes}
  words = [f'--config.{k}={trials.text(v)}' for k, v in all_of.items()]
  status = main_lib.main([f'--config={e.base}', f'--workdir={folder}', *words])
  if status:
    raise SystemExit(status)


def main() -> int:
  if not os.environ.get('LMJAX_MIXTURES'):
    print('LMJAX_MIXTURES is not set: it names the folder of these runs', file=sys.stderr)
    return 2
  into = pathlib.Path(os.environ['LMJAX_MIXTURES']).expanduser()
  run(into / 'reference')
  run(into / 'doremi', objective=f'doremi(reference="{into / "reference"}")')
  run(into / 'doge', objective='doge()')
  skills = []
  for i, name in enumerate(('jsonl', 'jsonl_2', 'jsonl_3')):
    skills.append(into / f'skill_{i}')
    run(skills[-1], steps=SKILL_STEPS, data__mixture=f'single(source="{name}")')
  return _graph.main([f'--out={into / "graph.json"}', *map(str, skills)])


if __name__ == '__main__':
  sys.exit(main())
