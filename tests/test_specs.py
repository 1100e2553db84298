"""Spec strings: what is written is read back the same, nothing is ever executed, and faults are
named in one sentence.
"""

import os

from hypothesis import example
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import pytest

from lmjax import specs
from lmjax.specs import Call, Segment, SpecError

import keyword

names = st.from_regex(r'[a-z][a-z0-9_]{0,8}', fullmatch=True).filter(
  lambda s: not keyword.iskeyword(s)
)
paths = st.builds(lambda a, b, c: f'{a}.{b}:{c}', names, names, names)
literals = st.recursive(
  st.none()
  | st.booleans()
  | st.integers()
  | st.floats(allow_nan=False, allow_infinity=False)
  | st.text(max_size=8),
  lambda inner: st.lists(inner, max_size=3).map(tuple),
  max_leaves=5,
)


def calls(values):
  args = st.dictionaries(names, values, max_size=3).map(lambda d: tuple(d.items()))
  return st.builds(Call, names | paths, args)


nested = st.recursive(
  calls(literals),
  lambda inner: calls(literals | inner | st.lists(inner, min_size=2, max_size=3).map(tuple)),
  max_leaves=4,
)
fast = settings(max_examples=60, deadline=None)


@fast
@given(nested)
def test_a_call_is_read_back_the_same(call):
  assert specs.call(str(call)) == call


@fast
@given(st.lists(nested, min_size=1, max_size=4))
def test_a_chain_is_read_back_the_same(parts):
  labelled = specs.chain(' | '.join(map(str, parts)))
  assert list(labelled.values()) == parts and len(labelled) == len(parts)


@fast
@given(st.lists(st.tuples(st.none() | st.floats(0, 1e6), calls(literals)), min_size=1, max_size=3))
def test_a_sum_is_read_back_the_same(terms):
  text = ' + '.join(('' if w is None else f'{w!r}*') + str(c) for w, c in terms)
  assert list(specs.weighted(text).values()) == terms


@fast
@example('0\r\x80')  # Python 3.12's tokenizer stumbles over it
@given(st.text(max_size=30))
def test_any_text_is_read_or_refused_with_spec_error(text):
  for read in (specs.call, specs.chain, specs.weighted, specs.segments):
    try:
      read(text)
    except SpecError:
      pass


@fast
@given(calls(literals), names, literals)
def test_rewriting_sets_one_argument_and_no_other(call, key, value):
  text = specs.rewrite(str(call), [key], value)
  assert specs.call(text) == Call(call.name, tuple({**dict(call.args), key: value}.items()))


ATTACKS = (
  '__import__("os").system("touch {}")',
  'a(x=__import__("os").system("touch {}"))',
  'a(x=open("{}", "w"))',
  'a.b(c=1)',
  'a(x=b.c)',
  'a(x=lambda: 1)',
  'a(x=f"{{1}}")',
  'a(x=[i for i in (1, 2)])',
  'a(x=1 if True else 2)',
  'a(x=(y := 3))',
  'a(**{{"x": 1}})',
  'a(*(1, 2))',
  'a(1)',
  'a()()',
  'a[0]',
  'a(x={{1: 2}})',
  'a(x={{1}})',
  'a(x=1); b()',
  'import os',
  'a(x=1+1)',
  'a(x=2**9999999)',
  'a(x="b"*9)',
  'a(x=-b)',
  'exec("1")',
  '(a)(x=1)(y=2)',
  'a(x=await b)',
  'a(x=...)[0]',
  'a\nb',
  'a(x=1',
  '"a"',
  '1',
  'a.b:c.d()',
  ':a()',
  'a:()',
  'a(x=1, x=2)',
  'not a',
  'a < b',
  'a and b',
  '()',
  'a(x=b"{}" "c")',
)


@pytest.mark.parametrize('attack', ATTACKS)
def test_nothing_is_executed(attack, tmp_path):
  target = tmp_path / 'touched'
  text = attack.format(target)
  for read in (specs.call, specs.chain):
    with pytest.raises(SpecError):
      read(text)
  assert not target.exists()


@pytest.mark.parametrize(
  'text',
  [
    'a(x=' + '(' * 5000 + ')' * 5000 + ')',
    'a(x=' + '[' * 150 + ']' * 150 + ')',
    'a(x=' * 3000 + '1' + ')' * 3000,
    ' | '.join(['a()'] * 3000),
    '-' * 5000 + 'a',
    'a' * 100_000 + '(',
    ' + '.join(['a'] * 5000),
    'a(x=' + '1' * 5000 + ')',
    '\0',
    'a(x="\0")',
  ],
  ids=lambda t: t[:12],
)
def test_huge_or_odd_texts_do_not_break_it(text):
  for read in (specs.call, specs.chain, specs.weighted, specs.segments):
    try:
      read(text)
    except SpecError:
      pass


@pytest.mark.parametrize('text', ['', '   ', None, 3, 'a || b', 'a |'])
def test_what_is_no_spec_is_refused(text):
  with pytest.raises(SpecError):
    specs.chain(text)


@pytest.mark.parametrize(
  'text, words',
  [
    ('a(3)', 'by name.*a\\(arg=3\\)'),
    ('a(x=b+c)', 'a.x=b \\+ c is not a literal'),
    ('a(x=1, x=2)', 'cannot read|given twice'),
    ('a | b', 'one part is expected'),
    ('a(**b)', 'name each argument'),
    ('a(x=1', 'cannot read the spec'),
  ],
)
def test_messages_name_the_text_and_what_is_accepted(text, words):
  with pytest.raises(SpecError, match=words):
    specs.call(text)


def test_labels_of_a_chain():
  assert list(specs.chain('clip() | adam() | clip() | m.n:clip()')) == [
    'clip',
    'adam',
    'clip_2',
    'clip_3',
  ]
  assert list(specs.chain('clip_2() | clip() | clip()')) == ['clip_2', 'clip', 'clip_3']


def test_lists_become_tuples_and_names_become_calls():
  assert specs.call('a(x=[1, [2, 3]], y=b, z=b() | c(d=1), w=-1.5)') == Call(
    'a',
    (('x', (1, (2, 3))), ('y', Call('b')), ('z', (Call('b'), Call('c', (('d', 1),)))), ('w', -1.5)),
  )


def test_sums():
  assert specs.weighted('0.7*a(p="x+y") + b() + 2*a()') == {
    'a': (0.7, Call('a', (('p', 'x+y'),))),
    'b': (None, Call('b')),
    'a_2': (2.0, Call('a')),
  }
  for bad in ('a*0.7', '"x"*a()', 'b*a()', '0.7*0.3*a()', '0.5*(a + b)', 'a - b'):
    with pytest.raises(SpecError):
      specs.weighted(bad)


def test_stacks():
  assert specs.segments(
    'full + (local, full)*2 + shared(full)*2 + shared((a, b))*3 + shared(c)'
  ) == (
    Segment(('full',)),
    Segment(('local', 'full'), 2),
    Segment(('full',), 2, True),
    Segment(('a', 'b'), 3, True),
    Segment(('c',), 1, True),
  )
  for bad in (
    'full*0',
    'full*-1',
    'full*1.5',
    'full*True',
    '2*full',
    'full*n',
    'full()',
    'shared()',
    'shared(a, b)',
    '()',
    '(a, (b, c))',
    'a | b',
    'a - b',
    'shared(x=a)',
    'shared(shared(a))',
  ):
    with pytest.raises(SpecError):
      specs.segments(bad)


@pytest.mark.parametrize(
  'text, path, value, want',
  [
    ('clip(norm=1.0) | adam(b2=0.95)', ['adam', 'b2'], 0.99, 'clip(norm=1.0) | adam(b2=0.99)'),
    ('clip() | adam() | clip(norm=2.0)', ['clip_2', 'norm'], 3, 'clip() | adam() | clip(norm=3)'),
    ('gqa(head_dim=64)', ['kv_heads'], 2, 'gqa(head_dim=64, kv_heads=2)'),
    ('gqa', ['gqa', 'x'], None, 'gqa(x=None)'),
    (
      'galore(rank=4, inner=adam(b2=0.9))',
      ['inner', 'adam', 'b2'],
      0.5,
      'galore(rank=4, inner=adam(b2=0.5))',
    ),
    ('galore(inner=adam())', ['galore', 'inner', 'b2'], 0.5, 'galore(inner=adam(b2=0.5))'),
    (
      'split(rest=clip() | adam(b1=0.9))',
      ['rest', 'adam', 'b1'],
      0.1,
      'split(rest=clip() | adam(b1=0.1))',
    ),
    ('0.7*a(x=1) + b()', ['b', 'y'], 'z', "0.7*a(x=1) + b(y='z')"),
    ('0.5*a()', ['x'], 1, '0.5*a(x=1)'),
    ('m.n:Part(x=1)', ['x'], 2, 'm.n:Part(x=2)'),
  ],
)
def test_rewriting(text, path, value, want):
  assert specs.rewrite(text, path, value) == want


@pytest.mark.parametrize(
  'text, path',
  [
    ('a() | b()', ['x']),
    ('a() | b()', ['c', 'x']),
    ('a(x=1)', ['x', 'y']),
    ('a(x=())', ['x', 'y']),
    ('a(x=(1, 2))', ['x', 'y']),
    ('a(inner=b() | c())', ['inner', 'x']),
    ('a() + b()', ['x']),
  ],
)
def test_rewriting_refuses_what_it_cannot_place(text, path):
  with pytest.raises(SpecError):
    specs.rewrite(text, path, 1)


def test_reading_never_imports_a_named_module(tmp_path, monkeypatch):
  (tmp_path / 'evil_module.py').write_text(f'open({str(tmp_path / "touched")!r}, "w")')
  monkeypatch.syspath_prepend(tmp_path)
  assert specs.call('evil_module:Part(x=1)') == Call('evil_module:Part', (('x', 1),))
  assert not os.path.exists(tmp_path / 'touched')
