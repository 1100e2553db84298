"""The notebooks: stripped, one first cell for all, in the slow tests executed at small sizes."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
BOOKS = sorted((ROOT / 'notebooks').glob('*.ipynb'))
each = pytest.mark.parametrize('path', BOOKS, ids=lambda p: p.stem)


def code(path):
  cells = json.loads(path.read_text('utf-8'))['cells']
  return [c | {'source': ''.join(c['source'])} for c in cells if c['cell_type'] == 'code']


def test_there_are_five():
  assert [p.stem[0] for p in BOOKS] == list('12345')


@each
def test_sound_small_and_without_outputs(path):
  assert path.stat().st_size < 20_000
  for cell in code(path):
    assert not cell['outputs'] and cell['execution_count'] is None, 'strip the outputs'
    compile(cell['source'], path.name, 'exec')


def test_the_first_cell_installs_and_is_the_same_in_all():
  first = {code(p)[0]['source'] for p in BOOKS}
  assert len(first) == 1 and "'pip', 'install'" in first.pop()


@pytest.mark.slow
@each
def test_runs_from_top_to_bottom(path, tmp_path):
  """In a folder of its own beside what it reads, as `notebooks` is beside `experiments`."""
  pytest.importorskip('nbclient', reason='it runs notebooks')
  pytest.importorskip('ipykernel', reason='it runs notebooks')
  pytest.importorskip('treescope', reason='it shows trees')
  folder = tmp_path / 'notebooks'
  folder.mkdir()
  (tmp_path / 'experiments').symlink_to(ROOT / 'experiments')
  kernel = tmp_path / 'share/jupyter/kernels/here'
  command = [sys.executable, '-m', 'ipykernel', 'install', f'--prefix={tmp_path}', '--name=here']
  subprocess.run(command, check=True, capture_output=True)
  assert kernel.is_dir()
  small = {
    'LMJAX_NOTEBOOK_SMALL': '1',
    'LMJAX_NOTEBOOK_RUNS': str(tmp_path / 'runs'),
    'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]),
    'JUPYTER_PATH': str(tmp_path / 'share/jupyter'),
    'MPLBACKEND': 'module://matplotlib_inline.backend_inline',
    'XLA_FLAGS': '',
  }
  script = (
    'import sys, nbformat, nbclient\n'
    'book = nbformat.read(sys.argv[1], as_version=4)\n'
    'nbformat.validate(book)\n'
    'nbclient.NotebookClient(book, timeout=400, kernel_name="here").execute()\n'
    'print(sum(len(c.get("outputs", ())) for c in book.cells))\n'
  )
  ran = subprocess.run(
    [sys.executable, '-c', script, str(path)],
    cwd=folder,
    env={**os.environ, **small},
    capture_output=True,
    text=True,
  )
  assert ran.returncode == 0, ran.stderr[-4000:]
  assert int(ran.stdout.split()[-1]) >= 3
