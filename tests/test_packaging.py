"""What is shipped: a light import, a wheel that holds what the code reads, licences, versions."""

import pathlib
import subprocess
import sys
import tarfile
import tomllib
import zipfile

from packaging import requirements
import pytest

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text('utf-8'))['project']
LOCK = ROOT / '.ci' / 'constraints.txt'
LOCKED = ('test', 'docs', 'notebooks')  # extras in the lock file

SMALL = (
  '--config.steps=2',
  '--config.eval.batches=1',
  '--config.model.width=32',
  '--config.model.mixer.head_dim=16',
  '--config.sample.tokens=4',
)


def python(code: str) -> str:
  out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
  assert out.returncode == 0, out.stderr
  return out.stdout


def test_import_is_light():
  """`import lmjax` and its command line are there before jax is."""
  code = 'import sys, time; t = time.perf_counter(); import lmjax; print(time.perf_counter() - t);'
  seconds, modules = python(code + 'print(*sys.modules)').splitlines()
  heavy = {'jax', 'flax', 'optax', 'orbax', 'grain', 'numpy', 'tensorflow', 'torch'}
  assert not heavy & {m.split('.')[0] for m in modules.split()}
  assert float(seconds) < 0.5
  modules = python('import sys, lmjax.main; lmjax.main.parser().format_help(); print(*sys.modules)')
  assert not heavy & {m.split('.')[0] for m in modules.split()}


def test_the_core_needs_neither_tensorflow_nor_torch():
  names = {requirements.Requirement(r).name for r in PROJECT['dependencies']}
  assert 'jax' in names and len(names) <= 15, names
  assert not {n for n in names if n.startswith(('tensorflow', 'torch', 'keras'))}


def test_licences_of_all_that_is_bundled_are_stated():
  notice = (ROOT / 'NOTICE').read_text('utf-8')
  assets = ROOT / 'lmjax' / 'assets'
  foreign = [p for p in assets.rglob('*') if p.suffix == '.xz' or '.min.' in p.name]
  assert foreign
  for path in (*foreign, *assets.rglob('*LICENSE')):
    assert path.relative_to(ROOT).as_posix() in notice, f'NOTICE says nothing of {path.name}'
  assert 'Apache License' in (ROOT / 'LICENSE').read_text('utf-8')


def test_the_lock_file_is_of_todays_bounds():
  locked = {}
  for line in LOCK.read_text('utf-8').splitlines():
    if line and not line.startswith('#'):
      r = requirements.Requirement(line)
      locked.setdefault(r.name.lower().replace('_', '-'), []).append(r)
  asked = [
    *PROJECT['dependencies'],
    *(r for e in LOCKED for r in PROJECT['optional-dependencies'][e]),
  ]
  for text in asked:
    r = requirements.Requirement(text)
    pins = locked.get(r.name.lower().replace('_', '-'))
    assert pins, f'{r.name} is not in .ci/constraints.txt; run .ci/lock'
    for pin in pins:
      version = str(pin.specifier).removeprefix('==')
      assert r.specifier.contains(version, prereleases=True), f'{text}, locked {version}: .ci/lock'


def test_every_core_dependency_is_bounded_on_both_sides():
  for text in PROJECT['dependencies']:
    signs = {s.operator for s in requirements.Requirement(text).specifier}
    assert '>=' in signs and '<' in signs, text


@pytest.fixture(scope='module')
def built(tmp_path_factory):
  """(wheel, sdist), built by the project's own backend."""
  pytest.importorskip('hatchling', reason='hatchling builds the wheel')
  out = tmp_path_factory.mktemp('dist')
  subprocess.run([sys.executable, '-m', 'hatchling', 'build', '-d', str(out)], cwd=ROOT, check=True)
  return next(out.glob('*.whl')), next(out.glob('*.tar.gz'))


@pytest.mark.slow
def test_the_wheel_holds_what_the_code_reads(built):
  wheel, _ = built
  with zipfile.ZipFile(wheel) as z:
    names = set(z.namelist())
    metadata = z.read(next(n for n in names if n.endswith('METADATA'))).decode()
  recipes = {p.name for p in (ROOT / 'configs').glob('*.py')}
  assert recipes and {f'lmjax/_configs/{r}' for r in recipes} <= names
  tracked = subprocess.run(
    ['git', 'ls-files', 'lmjax'], cwd=ROOT, capture_output=True, text=True, check=True
  ).stdout.splitlines()
  assert not [f for f in tracked if f not in names], 'a file of the package is not in the wheel'
  assert {n.rsplit('/', 1)[-1] for n in names if '/licenses/' in n} == {'LICENSE', 'NOTICE'}
  assert not [n for n in names if n.split('/')[0] not in ('lmjax',) and 'dist-info' not in n]
  assert 'License-Expression: Apache-2.0' in metadata
  assert wheel.stat().st_size < 8e6


@pytest.mark.slow
def test_the_sdist_makes_the_same_wheel_and_holds_no_experiments(built, tmp_path):
  wheel, sdist = built
  with tarfile.open(sdist) as t:
    tops = {n.split('/')[1] for n in t.getnames() if '/' in n}
    t.extractall(tmp_path, filter='data')
  assert 'experiments' not in tops and {'lmjax', 'configs', 'LICENSE', 'NOTICE'} <= tops
  folder = next(tmp_path.iterdir())
  command = [sys.executable, '-m', 'hatchling', 'build', '-t', 'wheel', '-d', str(tmp_path / 'out')]
  subprocess.run(command, cwd=folder, check=True)
  again = next((tmp_path / 'out').glob('*.whl'))
  files = lambda p: {i.filename: i.CRC for i in zipfile.ZipFile(p).infolist()}
  same = lambda p: {k: v for k, v in files(p).items() if not k.endswith('RECORD')}
  assert same(again) == same(wheel)


@pytest.mark.slow
def test_the_installed_wheel_runs_a_recipe_by_name(built, tmp_path):
  """From a folder of its own, with the dependencies of this environment."""
  wheel, _ = built
  site = tmp_path / 'site'
  with zipfile.ZipFile(wheel) as z:
    z.extractall(site)
  code = f"""
import runpy, sys
sys.path[:] = [{str(site)!r}, *(p for p in sys.path if p not in ('', {str(ROOT)!r}))]
sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f)]
import lmjax
assert lmjax.__file__.startswith({str(site)!r}), lmjax.__file__
sys.argv[1:] = {['--config=quickstart', '--workdir=run', *SMALL]!r}
runpy.run_module('lmjax.main', run_name='__main__')
"""
  folder = tmp_path / 'elsewhere'
  folder.mkdir()
  out = subprocess.run([sys.executable, '-c', code], cwd=folder, capture_output=True, text=True)
  assert out.returncode == 0, out.stderr[-2000:]
  assert (folder / 'run' / 'report.html').is_file()
