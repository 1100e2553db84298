"""The contract of every transform: pure in (row, seed), shape and padding kept, tokens conserved
where declared.
"""

import copy

import numpy as np
import pytest

import _rows
from lmjax import registry
from lmjax import specs
from lmjax.data import fields

# Every registered transform must be here, at a strength that shows.
SPECS = (
  'reverse_documents()',
  'reverse_documents(rate=1.0)',
  'token_noise(rate=0.5)',
  'token_noise()',
  *_rows.specs('transform'),
)
MAKING = (
  'ul2()',
  'ul2(form="encoder_decoder")',
  'span_corruption()',
)  # these make rows of other fields
APART = ('answers()',)  # its documents are of one form: tests/data/test_mqar.py
SEGMENTS = np.repeat([1, 2, 3, 4, 0], [20, 1, 30, 33, 16]).astype(np.int32)


@pytest.fixture(scope='module')
def tok():
  return registry.make('tokenizer', 'extended(extra=40)')()


def make(spec, tok):
  return registry.make('transform', spec, tokenizer=tok, length=len(SEGMENTS))()


def row(tok, seed=0):
  real = SEGMENTS > 0
  tokens = np.where(real, np.random.default_rng(seed).integers(0, 256, len(SEGMENTS)), 0)
  ends = np.flatnonzero(np.diff(SEGMENTS, append=0) * real)
  tokens[ends[[0, 2]]] = tok.eos
  tokens[[0, 21]] = tok.bos
  positions = np.concatenate([np.arange(n) for n in (20, 1, 30, 33)] + [np.zeros(16)])
  return dict(
    tokens=tokens.astype(np.int32), segments=SEGMENTS.copy(), positions=positions.astype(np.int32)
  )


def test_every_transform_is_tried():
  assert {specs.call(s).name for s in SPECS + MAKING + APART} == _rows.names('transform')


@pytest.mark.parametrize('spec', MAKING)
def test_contract_of_those_that_make_other_rows(spec, tok):
  part, given = make(spec, tok), row(tok)
  kept = copy.deepcopy(given)
  a, b = part(given, 5), make(spec, tok)(copy.deepcopy(given), 5)
  assert all(np.array_equal(kept[k], given[k]) for k in kept)
  assert all(np.array_equal(a[k], b[k]) for k in a)
  assert len({part(given, s)['tokens'].tobytes() for s in range(20)}) > 1
  laid = fields.of(len(SEGMENTS), [('it', part)])
  assert {k: (s.shape, s.dtype) for k, s in laid.items()} == {
    k: (v.shape, v.dtype) for k, v in a.items()
  }
  assert part.decode(part.encode('a text')) == 'a text'
  asked = part.prompt(part.encode('a text'))
  assert asked == part.prompt(tuple(part.encode('a text'))) and asked.text
  assert asked.joined == spec.startswith('ul2')  # an encoder's text is not gone on with
  assert (asked.source is not None) == ('encoder_tokens' in a)
  assert (asked.prefix > 0) == ('prefix' in a) and asked.prefix <= len(asked.text)
  for front in ('', 'encoder_') if 'encoder_tokens' in a else ('',):
    tokens, segments = a[f'{front}tokens'], a[f'{front}segments']
    assert tokens.min() >= 0 and tokens.max() < tok.vocab_size and not tokens[segments == 0].any()
  assert not a['weights'][a['segments'] == 0].any() and a['weights'].any()


@pytest.mark.parametrize('spec', SPECS)
def test_contract(spec, tok):
  part, given = make(spec, tok), row(tok)
  kept = copy.deepcopy(given)
  a, b, other = (
    part(given, 5),
    make(spec, tok)(copy.deepcopy(given), 5),
    [part(given, s)['tokens'] for s in range(20)],
  )
  assert all(np.array_equal(kept[k], given[k]) for k in kept), (
    'the row that came in is not written to'
  )
  assert all(np.array_equal(a[k], b[k]) for k in kept), 'the same row and seed give the same'
  if 'rate=1.0' not in spec:
    assert len({t.tobytes() for t in other}) > 1, 'another seed gives another row'
  for key in kept:
    assert a[key].shape == kept[key].shape and a[key].dtype == kept[key].dtype, key
  assert np.array_equal(a['segments'], SEGMENTS) and not a['tokens'][SEGMENTS == 0].any()
  assert a['tokens'].min() >= 0 and a['tokens'].max() < tok.vocab_size


@pytest.mark.parametrize('spec', SPECS)
def test_conservation_as_declared(spec, tok):
  part, given = make(spec, tok), row(tok)

  def contents(r):
    return [sorted(r['tokens'][SEGMENTS == s].tolist()) for s in range(1, 5)]

  same = [contents(part(given, s)) == contents(given) for s in range(10)]
  assert all(same) if part.conserves else not any(same)


def test_reverse_by_hand(tok):
  out = make('reverse_documents(rate=1.0)', tok)(row(tok), 0)['tokens']
  given = row(tok)['tokens']
  assert out[0] == tok.bos and out[19] == tok.eos and np.array_equal(out[1:19], given[1:19][::-1])
  assert out[20] == given[20]
  assert np.array_equal(out[51:84], given[51:84][::-1])
  assert np.array_equal(make('reverse_documents(rate=0.0)', tok)(row(tok), 0)['tokens'], given)


def test_reverse_rate(tok):
  part, given = make('reverse_documents(rate=0.3)', tok), row(tok)
  hits = [
    not np.array_equal(part(given, s)['tokens'][51:84], given['tokens'][51:84]) for s in range(600)
  ]
  assert 0.24 < np.mean(hits) < 0.36


def test_noise_rate_and_specials(tok):
  part, given = make('token_noise(rate=0.2)', tok), row(tok)
  out = np.array([part(given, s)['tokens'] for s in range(400)])
  ordinary = (SEGMENTS > 0) & (given['tokens'] < 256)
  assert np.array_equal(out[:, ~ordinary], np.tile(given['tokens'][~ordinary], (400, 1))), (
    'specials and padding stay'
  )
  changed = (out != given['tokens'])[:, ordinary].mean()
  assert abs(changed - 0.2 * 255 / 256) < 0.01
  drawn = out[:, ordinary][(out != given['tokens'])[:, ordinary]]
  assert drawn.max() < 256 and len(np.unique(drawn)) == 256


@pytest.mark.parametrize('spec', ['reverse_documents(rate=-0.1)', 'token_noise(rate=1.5)'])
def test_rates_are_probabilities(spec):
  with pytest.raises(ValueError, match='a probability from 0 to 1'):
    registry.make('transform', spec)
