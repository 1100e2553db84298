"""A run whose newest checkpoint was damaged says so and waits to be told; nothing is silent."""

import _runs
from lmjax.data import skips
import pytest


@pytest.fixture(scope='module')
def train(tmp_path_factory):
  return _runs.texts(tmp_path_factory.mktemp('texts'))


@pytest.fixture
def workdir(train, tmp_path):
  """A run of 12 steps, killed before its report was written, as it were."""
  assert _runs.run(tmp_path / 'w', train, steps=12, schedule='constant()') == 0
  return tmp_path / 'w'


def again(workdir, train, *flags):
  return _runs.run(workdir, train, *flags, steps=16, schedule='constant()')


def largest(folder):
  return max((f for f in folder.rglob('*') if f.is_file()), key=lambda f: f.stat().st_size)


def truncate(folder):
  file = largest(folder)
  file.write_bytes(file.read_bytes()[:-1])
  return file


def flip(folder):
  file = largest(folder)
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 1
  file.write_bytes(bytes(data))
  return file


def delete(folder):
  file = largest(folder)
  file.unlink()
  return file


def garble(folder):
  file = folder / 'manifest.json'
  file.write_text(file.read_text().replace('"size"', '"zise"', 1))
  return file


@pytest.mark.parametrize(
  'damage',
  [flip, *(pytest.param(d, marks=pytest.mark.slow) for d in (delete, truncate, garble))],
)
def test_refused_by_name_and_passed_over_when_asked(workdir, train, capsys, damage):
  file = damage(workdir / 'checkpoints/12')
  before = sorted(str(p) for p in workdir.rglob('*'))
  capsys.readouterr()
  assert again(workdir, train) == 2
  said = capsys.readouterr().err
  assert str(file) in said and '--allow_older_checkpoint would use step 8' in said
  assert sorted(str(p) for p in workdir.rglob('*')) == before
  assert again(workdir, train, '--allow_older_checkpoint') == 0
  assert 'resumed at step 8' in capsys.readouterr().err
  assert again(workdir, train) == 0, 'the flag is needed once'
  assert [m['step'] for m in _runs.lines(workdir)] == list(range(1, 17))


def test_nothing_whole_is_no_reason_to_start_anew(workdir, train, capsys):
  for step in (4, 8, 12):
    delete(workdir / f'checkpoints/{step}')
  assert again(workdir, train, '--allow_older_checkpoint') == 2
  assert 'is whole (damaged: 4, 8, 12)' in capsys.readouterr().err


def test_the_older_checkpoint_has_seen_no_batch_that_is_skipped_now(workdir, train, capsys):
  skips.add(workdir, [(6, 7)], 'rewind to step 4, which was killed')
  delete(workdir / 'checkpoints/12')
  assert again(workdir, train, '--allow_older_checkpoint') == 0
  assert 'resumed at step 4' in capsys.readouterr().err


def test_a_missing_marker_is_an_interrupted_save(workdir, train, capsys):
  (workdir / 'checkpoints/12/manifest.json').unlink()
  (workdir / 'checkpoints/12/mine.txt').write_text('foreign')
  capsys.readouterr()
  assert again(workdir, train) == 0
  assert 'resumed at step 8' in capsys.readouterr().err
  assert [p.read_text() for p in workdir.glob('checkpoints/*/mine.txt')] == ['foreign']
