"""What the repository says of its own experiments follows from their results."""

import importlib.util
import pathlib

import pytest

from lmjax.experiment import checks
from lmjax.experiment import results
from lmjax.experiment import tables
from lmjax.experiment import trials

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDERS = tables.folders(ROOT / 'experiments')


def test_the_index_of_the_readme_is_of_todays_results():
  readme = (ROOT / 'README.md').read_text('utf-8')
  new = tables.with_index(readme, tables.index(ROOT / 'experiments'))
  assert new == readme, 'python -m lmjax.experiment index'


@pytest.mark.parametrize('folder', FOLDERS, ids=lambda p: p.name)
def test_every_experiment_is_sound(folder):
  """Arms differ in the declared fields alone, are tuned alike, and decay inside their budgets."""
  e = checks.load(folder)
  for scale in e.scales:
    assert trials.tuning(e, scale)
    for arm in e.arms:
      for steps in e.budgets(arm, scale):
        trials.trial(e, scale, arm, arm.points()[0], e.seeds[0], steps)


@pytest.mark.parametrize('folder', FOLDERS, ids=lambda p: p.name)
def test_pages_are_of_todays_results(folder):
  if results.read(folder)['scales']:
    page = (folder / 'results.md').read_text('utf-8')
    assert page == tables.page(folder), f'python -m lmjax.experiment report {folder}'


def test_the_memory_table_is_of_todays_states():
  spec = importlib.util.spec_from_file_location('memory', ROOT / 'experiments/optimizers/memory.py')
  memory = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(memory)
  page = (ROOT / 'experiments/optimizers/memory.md').read_text('utf-8')
  for name in ('adamw, 8 bits', 'scale'):
    found = memory.state_bytes('gpt2:124M', memory.METHODS[name])
    assert f'| {name} | {found:.3f} |' in page, 'python experiments/optimizers/memory.py'
