"""Skipped batches: closed form equals counting, the file is only added to, bad entries named."""

import json

from hypothesis import given
from hypothesis import strategies as st
import pytest

from lmjax import exits
from lmjax.data import skips
from lmjax.data.skips import Skips

RANGES = st.lists(
  st.tuples(st.integers(0, 60), st.integers(1, 20)).map(lambda r: (r[0], r[0] + r[1])), max_size=6
)


@given(ranges=RANGES)
def test_closed_form_equals_counting(ranges):
  out = {b for a, z in ranges for b in range(a, z)}
  left = [b for b in range(200) if b not in out]
  found = Skips.of(ranges)
  assert [found.batch(k) for k in range(80)] == left[:80]
  assert all(a[1] < b[0] for a, b in zip(found.ranges, found.ranges[1:]))


@given(ranges=RANGES, update=st.integers(0, 80))
def test_what_lies_ahead_does_not_change_the_past(ranges, update):
  found = Skips.of(ranges)
  place = found.batch(update)
  past = found.before(place)
  assert all(b <= place for _, b in past.ranges)
  assert [past.batch(k) for k in range(update)] == [found.batch(k) for k in range(update)]
  later = Skips.of([*found.ranges, (place, place + 7)])
  assert later.before(place) == past and later.batch(update) >= place + 7


def test_parse():
  assert skips.parse('1200:1400, 1512') == [(1200, 1400), (1512, 1513)]
  for bad in (
    '',
    '3:3',
    '5:4',
    '-1',
    'a',
    '1;2',
    '1:2:3',
    '1:',
    '4:9223372036854775807',
    f'1:{skips.MOST + 1}',
    '9' * 5000,
  ):
    with pytest.raises(ValueError, match='--skip_batches') as e:
      skips.parse(bad)
    assert len(str(e.value)) < 400
  assert skips.parse(f'5:{skips.MOST}') == [(5, skips.MOST)]


def test_the_file_is_added_to(tmp_path):
  assert skips.read(tmp_path) == Skips()
  assert skips.add(tmp_path, [(5, 9)], 'first').ranges == ((5, 9),)
  assert skips.add(tmp_path, [(8, 12), (1, 2)], 'second').ranges == ((1, 2), (5, 12))
  assert [e['why'] for e in skips.entries(tmp_path)] == ['first', 'second', 'second']
  assert not list(tmp_path.glob('*.partial'))


@pytest.mark.parametrize(
  'text',
  [
    '{',
    '[1]',
    '{"a": 1}',
    '{}',
    '[' * 100_000,
    'null',
    '"text"',
    '[{"start": 4, "stop": 9223372036854775807}]',
    '[{"start": true, "stop": 2}]',
    '[{"start": 1}]',
    '[{"start": 2, "stop": 2}]',
    '[{"start": "1", "stop": 2}]',
  ],
)
def test_a_file_that_cannot_be_used_is_named_and_kept(tmp_path, text):
  (tmp_path / skips.FILE).write_text(text)
  with pytest.raises(ValueError, match='skips.json'):
    skips.read(tmp_path)
  with pytest.raises(ValueError, match='skips.json'):
    skips.add(tmp_path, [(1, 2)], 'more')
  assert (tmp_path / skips.FILE).read_text() == text


def test_entries_by_reason(tmp_path):
  skips.add(tmp_path, [(5, 9)], 'rewind to step 3')
  skips.add(tmp_path, [(20, 22)], 'mine')
  assert skips.read(tmp_path, why=skips.REWIND).ranges == ((5, 9),)


def test_a_full_disk_ends_the_run(tmp_path, monkeypatch):
  def full(*_):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(skips.files, 'write', full)
  with pytest.raises(exits.Ended, match='skips.json cannot be written: No space left') as e:
    skips.add(tmp_path, [(5, 9)], 'mine')
  assert e.value.status == exits.DISK


def test_entries_are_json(tmp_path):
  skips.add(tmp_path, [(1, 2)], 'why "not"')
  assert json.loads((tmp_path / skips.FILE).read_text())[0]['why'] == 'why "not"'
