"""A bit flipped in one matrix product of a real run is found, and the step done again."""

import _runs
import pytest

from tests.outside import flipping

STEPS = 6


@pytest.fixture(scope='module')
def train(tmp_path_factory):
  return _runs.texts(tmp_path_factory.mktemp('texts'))


def run(workdir, train, at: int, **settings):
  """(arrays at the end, number of calls)."""
  flipping.calls = 0
  how = dict(steps=STEPS, model__ffn=f'tests.outside.flipping:Flipping(at={at})') | settings
  # One device: with more, a callback is called once for each.
  assert _runs.run(workdir, train, **how) == 0
  return _runs.arrays(workdir, STEPS), flipping.calls


@pytest.fixture(scope='module')
def sound(train, tmp_path_factory):
  return run(tmp_path_factory.mktemp('sound') / 'w', train, at=0)


@pytest.mark.slow
def test_unseen_it_changes_the_run(sound, train, tmp_path):
  found, _ = run(tmp_path / 'w', train, at=sound[1] // 2)
  assert _runs.same_arrays(sound[0], found)


@pytest.mark.parametrize(
  'part', [0.55, *(pytest.param(p, marks=pytest.mark.slow) for p in (0.3, 0.9))]
)
def test_found_and_replayed(sound, train, tmp_path, capsys, part):
  at = int(2 * sound[1] * part)
  found, calls = run(tmp_path / 'w', train, at=at, recompute_every=1)
  said = capsys.readouterr().err
  assert 'silent data corruption: computed twice' in said
  assert f'{STEPS} steps were computed twice' in said and '1 differed' in said
  assert calls == 2 * sound[1] + sound[1] // STEPS
  assert not _runs.same_arrays(sound[0], found)
  lines = _runs.lines(tmp_path / 'w', 'corruption')
  assert len(lines) == 1 and any('params' in name for name in lines[0]['arrays'])


@pytest.mark.slow
def test_without_a_fault_nothing_is_said(sound, train, tmp_path, capsys):
  found, _ = run(tmp_path / 'w', train, at=0, recompute_every=2)
  said = capsys.readouterr().err
  assert '3 steps were computed twice' in said and '0 differed' in said
  assert not _runs.same_arrays(sound[0], found)
