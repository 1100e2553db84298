"""`python -m lmjax.new`: what it writes passes the contract suite at once and fails its own test.

In a copy of the checkout and in a package outside; and what it refuses.
"""

import ast
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from lmjax import new
from lmjax.experiment import checks

ROOT = pathlib.Path(__file__).parents[1]
# Of the contract suites: what is tried of the new parts, and that none is missing.
CHOICE = 'fresh or missing or every_part or every_source or every_transform or own_by_hand'


def run(*command, cwd, **env):
  return subprocess.run(
    [sys.executable, *map(str, command)],
    cwd=cwd,
    env={**os.environ, **env},
    capture_output=True,
    text=True,
  )


@pytest.fixture(scope='module')
def copy(tmp_path_factory):
  """A copy of the checkout with a new part of every kind."""
  to = tmp_path_factory.mktemp('checkout')
  for name in ('lmjax', 'configs', 'tests'):
    shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns('__pycache__'))
  code = (
    'import sys; from lmjax import new; sys.exit(max(new.main([k, "fresh_" + k]) for k in new.HOW))'
  )
  out = run('-c', code, cwd=to, PYTHONPATH=str(to))
  assert out.returncode == 0, out.stderr
  return to


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """Where a package outside may be, on the path."""
  monkeypatch.syspath_prepend(tmp_path)
  return tmp_path


def test_a_checkout_gets_part_rows_test_and_experiment(copy):
  for kind, how in new.HOW.items():
    name = f'fresh_{kind}'
    rows = copy / f'tests/contracts/rows/rows_{kind}_{name}.py'
    test = copy / f'tests/{how.room}/test_{name}.py'
    parts = list((copy / 'lmjax').rglob(f'{name}.py'))
    assert rows.is_file() and test.is_file() and len(parts) == 1, kind
    text = ast.get_docstring(ast.parse(parts[0].read_text('utf-8')))
    assert 'TODO' in text and f'--config.{how.key}=' in text, kind
    experiment = copy / f'experiments/{name}'
    assert experiment.is_dir() == bool(how.field), kind


def test_what_is_written_is_in_the_style_of_the_house(copy):
  ruff = shutil.which('ruff', path=f'{pathlib.Path(sys.executable).parent}:{os.environ["PATH"]}')
  if not ruff:
    pytest.skip('ruff is not installed')
  shutil.copy(ROOT / 'pyproject.toml', copy)
  for command in (['check'], ['format', '--check']):
    out = subprocess.run([ruff, *command, '.'], cwd=copy, capture_output=True, text=True)
    assert out.returncode == 0, out.stdout


@pytest.mark.parametrize('kind', new.HOW)
def test_outside_a_config_takes_the_part_and_its_own_test_waits(kind, folder, tmp_path, capsys):
  name = f'fresh_{kind}'
  assert new.main([kind, name, f'--outside={folder / f"package_{kind}"}']) == 0
  told = capsys.readouterr().out
  assert f'package_{kind}.{name}:' in told and 'PYTHONPATH' in told
  found = {}
  exec(compile((folder / f'package_{kind}/test_{name}.py').read_text('utf-8'), 'x', 'exec'), found)
  found['test_a_config_takes_it'](*([tmp_path] if new.HOW[kind].file else []))
  with pytest.raises(pytest.fail.Exception, match='not written'):
    found['test_the_checks_of_the_method_are_written']()


def test_an_experiment_that_is_written_is_sound(folder):
  assert new.main(['mixer', 'fresh_mixer', f'--outside={folder / "package_e"}']) == 0
  e = checks.load(folder / 'package_e/experiments/fresh_mixer')
  assert [a.name for a in e.arms] == ['baseline', 'fresh_mixer']


@pytest.mark.parametrize(
  'words, told',
  [
    (['mixr', 'mine'], "did you mean 'mixer'"),
    (['tokenizer', 'mine'], 'no template for this kind'),
    (['mixer', 'gqa'], 'there is a part mixer:gqa'),
    (['norm', 'gqa'], 'there is a part mixer:gqa'),
    (['mixer', 'MyMixer'], 'no name of a part'),
    (['mixer', 'class'], 'no name of a part'),
    (['mixer', 'a' * 31], 'no name of a part'),
    (['mixer', 'norm'], 'test_norm.py exists'),
    (['mixer'], 'KIND and NAME are needed'),
    (['mixer', 'mine', '--outside=my-package'], 'cannot be the name of a Python package'),
    (['mixer', 'mine', '--outside=json'], 'name of another package'),
  ],
)
def test_what_is_refused(words, told, capsys, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  before = sorted(ROOT.glob('lmjax/models/**/*.py'))
  assert new.main(words) == 2
  error = capsys.readouterr().err
  assert told in error and error.count('\n') == 1
  assert sorted(ROOT.glob('lmjax/models/**/*.py')) == before and not any(tmp_path.iterdir())


def test_nothing_is_overwritten(folder, capsys):
  place = folder / 'package_o'
  place.mkdir()
  (place / 'test_mine.py').write_text('kept')
  assert new.main(['norm', 'mine', f'--outside={place}']) == 2
  assert 'test_mine.py exists' in capsys.readouterr().err
  assert [p.name for p in place.iterdir()] == ['test_mine.py']


def contract(checkout, suites='tests/contracts', **env):
  out = run(
    *('-m', 'pytest', '-q', '-p', 'no:cacheprovider', suites, '-k', CHOICE),
    cwd=checkout,
    PYTHONPATH=f'{checkout}{os.pathsep}{env.pop("packages", "")}',
    **env,
  )
  return out.returncode, out.stdout[-3000:]


@pytest.mark.slow
def test_the_contract_suites_pass_at_once(copy):
  status, text = contract(copy)
  assert status == 0, text


@pytest.mark.slow
def test_the_contract_suites_of_a_checkout_try_parts_outside(copy, tmp_path):
  for kind in new.HOW:
    assert new.main([kind, f'fresh_out_{kind}', f'--outside={tmp_path / "package_c"}']) == 0
  status, text = contract(ROOT, LMJAX_CONTRACT_ROWS=str(tmp_path / 'package_c'))
  assert status == 0, text


@pytest.mark.slow
def test_a_broken_part_fails_the_contract(copy):
  part = copy / 'lmjax/models/mixers/fresh_mixer.py'
  text = part.read_text('utf-8')
  assert 'steps[:, None] >= steps' in text
  part.write_text(text.replace('steps[:, None] >= steps', 'steps[:, None] >= steps - 1'))
  try:
    status, out = contract(copy, 'tests/contracts/test_mixer.py')
  finally:
    part.write_text(text)
  assert status == 1 and 'test_the_future_leaves_the_past_bit_equal' in out, out
