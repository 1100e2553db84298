"""The first two steps of every recipe family give the numbers in metrics.json."""

import json
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import golden  # noqa: E402


@pytest.mark.parametrize('recipe', golden.RECIPES)
def test_first_steps(recipe):
  expected = json.loads(golden.FILE.read_text())[recipe]
  found = golden.differences(expected, golden.measure(recipe))
  assert not found, (
    'if this is meant: python tests/golden/golden.py --write, and say why in the commit\n'
    + '\n'.join(found)
  )
