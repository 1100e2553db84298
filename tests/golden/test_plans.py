import importlib.metadata
import json
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import plans  # noqa: E402
from lmjax.planning import compile as compile_lib  # noqa: E402

GOLDEN = json.loads(plans.FILE.read_text())


@pytest.mark.slow
@pytest.mark.skipif(not compile_lib.available(), reason='needs libtpu')
@pytest.mark.parametrize('recipe, topology', plans.CASES)
def test_collectives_are_as_they_were(recipe, topology):
  made_by = GOLDEN['versions']
  here = {n: importlib.metadata.version(n) for n in made_by}
  if here != made_by:
    pytest.skip(f'plans.json is of {made_by}, here is {here}')
  found = plans.differences(
    GOLDEN['plans'][plans.name(recipe, topology)], plans.measure(recipe, topology)
  )
  assert not found, '\n'.join(found) + '\npython tests/golden/plans.py --write renews them'


def test_every_recipe_family_has_plans():
  assert set(GOLDEN['plans']) == {plans.name(*case) for case in plans.CASES}
  for key, rows in GOLDEN['plans'].items():
    axes = {a for r in rows for a in r['axes'] or ()}
    assert axes == ({'data', 'tensor'} if '2x4' in key else {'data'}), key


def test_differences_are_told():
  row = dict(kind='all-gather', axes=['data'], dtype='bf16', count=2, payload=1000, wire=750)
  assert plans.differences([row], [row]) == []
  (line,) = plans.differences([row], [row | dict(count=3, payload=1500)])
  assert (
    line == 'all-gather over data (bf16): was 2 of 1,000 bytes in all, is 3 of 1,500 bytes in all'
  )
  assert 'absent' in plans.differences([], [row])[0]
