"""Who differs in what, said by all: a wrong name would send a person to the wrong host."""

import json

from lmjax import config
from lmjax.parallel import agree
from lmjax.parallel import alike

RESOLVED = config.resolve(config.default())


def said(*facts):
  return [(f'host{i}', f) for i, f in enumerate(facts)]


def test_equal_facts_are_silent():
  assert agree.differences(said(*[dict(a=1, b=[1, 2])] * 3)) == ''


def test_the_one_that_differs_from_most_is_named_also_where_it_is_the_first():
  text = agree.differences(said(dict(a=2, b=0), dict(a=1, b=0), dict(a=1, b=0)))
  assert 'process 0 (host0): a is 2 there, and 1 on process 1 (host1) and 1 more' in text
  assert 'process 2' not in text and ' b ' not in text


def test_of_two_the_first_is_taken_for_right():
  text = agree.differences(said(dict(a='x'), dict(a='y', b=1)))
  assert 'process 1 (host1): a is "y" there, and "x" on process 0 (host0)' in text
  assert 'b is 1 there, and nothing on process 0 (host0)' in text
  assert '\n' not in text


def test_many_differences_are_cut():
  facts = [{f'k{j}': i for j in range(9)} for i in range(8)]
  text = agree.differences(said(*facts))
  assert 'and 6 more' in text and 'and 4 more processes differ' in text and len(text) < 1500


def test_what_makes_another_program_is_a_fact_and_what_is_private_is_not():
  other = json.loads(json.dumps(RESOLVED))
  other['mesh']['data'] = 2
  other['steps'] += 1
  other['data']['threads'] += 1
  other['watchdog']['seconds'] = 3
  a, b = (alike.facts(r, dict(skip_batches='')) for r in (RESOLVED, other))
  own = {'config.mesh.data', 'config.steps'}
  assert {k for k in a if a[k] != b[k]} - {'the fingerprint of the config'} == own
  assert {'the version of jax', 'the source of lmjax (digest)', '--skip_batches'} < a.keys()
  assert alike.facts(RESOLVED, dict(skip_batches='3'))['--skip_batches'] == '3'


def test_the_digest_follows_the_source(monkeypatch, tmp_path):
  (tmp_path / 'parallel').mkdir()
  monkeypatch.setattr(alike, '__file__', str(tmp_path / 'parallel' / 'alike.py'))
  found = []
  for text in ('x = 1', 'x = 2'):
    (tmp_path / 'a.py').write_text(text)
    found.append(alike.source.__wrapped__())
  assert found[0] != found[1]


def test_parts_of_other_modules_count_too(monkeypatch):
  other = json.loads(json.dumps(RESOLVED))
  other['objective'] = 'tests.outside.stream:Watched()'
  key = 'the source of tests.outside.stream (digest)'
  assert len(alike.facts(other, {})[key]) == 12
