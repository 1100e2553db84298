"""Multi-query associative recall: what its documents are, which tokens are answers, and both in the
data of a run.
"""

import subprocess
import sys

import numpy as np
import pytest

from lmjax import build
from lmjax import config
from lmjax import feed
from lmjax import registry
from lmjax.data import store


FIFTH = [0, 6, 1, 10, 1, 10, 0, 6]  # document 5 of the spec below


def source(spec='mqar()'):
  return registry.make('source', spec)()


def answers(length=64):
  return registry.make('transform', 'answers()', length=length)()


def row(*documents, padding=3, first=0):
  """A row of these documents; positions of the first begin at `first`."""
  ids = [np.asarray(d, np.int32) for d in documents]
  segments = np.concatenate([np.full(len(d), i + 1) for i, d in enumerate(ids)])
  positions = np.concatenate([np.arange(len(d)) + first * (i == 0) for i, d in enumerate(ids)])
  pad = lambda x: np.pad(x, (0, padding)).astype(np.int32)
  return dict(tokens=pad(np.concatenate(ids)), segments=pad(segments), positions=pad(positions))


@pytest.mark.parametrize(
  'spec, pairs, keys, values',
  [
    ('mqar()', 16, 128, 128),
    ('mqar(pairs=1, keys=1, values=1)', 1, 1, 1),
    ('mqar(pairs=5, keys=5, values=9, seed=7)', 5, 5, 9),
  ],
)
def test_every_key_is_bound_and_asked_for_once(spec, pairs, keys, values):
  made = source(spec)
  for i in range(50):
    document = made.document(i)
    assert document.shape == (4 * pairs,) and document.dtype == np.int32
    bound, asked = document.reshape(2, pairs, 2)
    assert len(set(bound[:, 0])) == len(set(bound[:, 1])) == pairs
    assert 0 <= bound[:, 0].min() and bound[:, 0].max() < keys
    assert keys <= bound[:, 1].min() and bound[:, 1].max() < keys + values
    assert sorted(map(tuple, bound)) == sorted(map(tuple, asked)), 'the same pairs, each once'


def test_choices_are_uniform():
  found = np.stack(list(source('mqar(pairs=2, keys=4, values=3, documents=6000)')))
  share = lambda x: np.unique(x, return_counts=True)[1] / len(found)
  for place, (n, first) in {0: (4, 0), 2: (4, 0), 1: (3, 4), 3: (3, 4)}.items():
    assert set(found[:, place]) == set(range(first, first + n))
    assert np.abs(share(found[:, place]) - 1 / n).max() < 0.03
  assert abs((found[:, 0] == found[:, 4]).mean() - 0.5) < 0.03, 'in either order'
  together = share(found[:, 0] * 8 + found[:, 1])
  assert len(together) == 12 and np.abs(together - 1 / 12).max() < 0.02, 'independent'


def test_the_same_in_every_process():
  made = source('mqar(pairs=2, keys=6, values=6, seed=3)')
  assert made.document(5).tolist() == FIFTH
  code = (
    'from lmjax import registry\n'
    "s = registry.make('source', 'mqar(pairs=2, keys=6, values=6, seed=3)')()\n"
    'print(s.document(5).tolist(), s.fingerprint())'
  )
  out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert out.stdout.strip() == f'{FIFTH} {made.fingerprint()}'


def test_no_document_of_training_is_held_out_or_comes_twice():
  """At the sizes of experiments/recall, for half its pairs, where chance is larger."""
  spec = 'mqar(pairs=4, keys=32, values=32, documents={}, seed={})'
  train = {d.tobytes() for d in source(spec.format(8192, 0))}
  held = {d.tobytes() for d in source(spec.format(256, 1))}
  assert len(train) == 8192 and len(held) == 256 and not train & held


def test_contract_of_a_source():
  made = registry.make('source', 'mqar(pairs=3, documents=20)')
  assert made.fact('tokens')
  twice = [[d.tolist() for d in made()] for _ in range(2)]
  assert twice[0] == twice[1] and len(twice[0]) == 20
  assert [made().document(i).tolist() for i in (19, 0)] == [twice[0][19], twice[0][0]]
  specs = ['', 'seed=1', 'pairs=3', 'documents=9', 'keys=99', 'values=99']
  assert len({source(f'mqar({s})').fingerprint() for s in specs}) == len(specs)
  assert source('mqar(pairs=16)').fingerprint() == source().fingerprint()


@pytest.mark.parametrize('tokenizer', ['bytes(specials=False)', 'bytes()'])
def test_stored_with_a_tokenizer_of_enough_ids(tmp_path, tokenizer):
  tok = registry.make('tokenizer', tokenizer)()
  got = store.stored(source('mqar(documents=3)'), tok, tmp_path)
  assert [got[i].tolist() for i in range(3)] == [d.tolist() for d in source('mqar(documents=3)')]
  with pytest.raises(ValueError, match='is not in the vocabulary'):
    store.stored(source('mqar(values=133)'), tok, tmp_path / 'other')


@pytest.mark.parametrize(
  'args, word',
  [
    ('pairs=0', 'pairs=0: at least 1 and at most 128'),
    ('pairs=9, keys=8', 'at most 8'),
    ('pairs=9, values=8', 'at most 8'),
    ('keys=0', 'keys=0: at least 1'),
    ('values=2000000', 'at most 1048576'),
    ('documents=0', 'documents=0: at least 1'),
    ('seed=-1', 'seed=-1: at least 0'),
  ],
)
def test_refused(args, word):
  with pytest.raises(ValueError, match=word):
    registry.make('source', f'mqar({args})')


def test_answers_by_hand():
  given = row([1, 11, 2, 12, 2, 12, 1, 11, 2, 12], [2, 13, 3, 11, 3, 11])
  kept = {k: v.copy() for k, v in given.items()}
  out = answers()(given, 0)
  want = [0, 0, 0, 0, 0, 1, 0, 1, 0, 1] + [0, 0, 0, 0, 0, 1] + [0] * 3
  assert out['weights'].tolist() == want and out['weights'].dtype == np.float32
  assert set(out) == {*kept, 'weights'}
  assert all(np.array_equal(given[k], v) and np.array_equal(out[k], v) for k, v in kept.items())
  assert not answers()(row([], padding=8), 0)['weights'].any()
  cut = answers()(row([2, 12, 1, 11, 2], [1, 11], padding=0), 0)['weights']
  assert not cut.any(), 'a key without its value; another document'


def test_answers_are_all_that_a_document_can_tell():
  """Whoever looks keys up is right wherever there is weight, in every document of a source."""
  for document in source('mqar(pairs=8, keys=9, values=9, documents=200)'):
    w = answers()(row(document), 0)['weights'][: len(document)]
    assert np.flatnonzero(w).tolist() == list(range(17, 32, 2))
    seen = dict(document.reshape(-1, 2)[:8])
    assert all(seen[document[i - 1]] == document[i] for i in np.flatnonzero(w))


def test_documents_that_are_no_pairs_are_refused():
  with pytest.raises(ValueError, match='binds key 1 to 11 and to 12; .*best_fit'):
    answers()(row([1, 11, 1, 12]), 0)
  document = source('mqar(pairs=8)').document(0)
  with pytest.raises(ValueError, match='one document binds key'):
    answers()(row(document[1:]), 0)
  with pytest.raises(ValueError, match='data.length=63: an even number'):
    answers(63)


CONFIG = [
  ('model.width', '16'),
  ('model.depth', '1'),
  ('model.mixer.head_dim', '8'),
  ('data.length', '32'),
  ('batch_tokens', '128'),
  ('data.tokenizer', 'bytes(specials=False)'),
  ('data.train', 'mqar(pairs=4, documents=64) + mqar(pairs=8, documents=64)'),
  ('data.valid', 'mqar(pairs=8, documents=6, seed=1)'),
  ('data.pack', 'best_fit()'),
  ('data.transforms', 'answers()'),
]


@pytest.mark.parametrize('pack', ['best_fit()', 'pad()'])
def test_in_a_run(tmp_path, pack):
  """Targets with weight are answers, in training and on held-out data, whatever shares a row."""
  changes = [*CONFIG, ('data.pack', pack)]
  run = build.build(config.resolve(config.load('quickstart', changes)))
  made = feed.Feed(run, tmp_path)
  train, it = [], made.train(0)
  for _ in range(4):
    train.append(next(it))
  answered = []
  for batch in (*train, *made.valid()):
    batch = {k: np.asarray(v) for k, v in batch.items()}
    weights = np.asarray(run.objective.weights(batch))
    for tokens, segments, w in zip(batch['tokens'], batch['segments'], weights):
      for at in np.flatnonzero(w):
        before = [t for t, s in zip(tokens[:at], segments[:at]) if s == segments[at]]
        assert tokens[at + 1] == before[before.index(tokens[at]) + 1]
    answered.append(int(weights.sum()))
  full = 8 * run.rows  # eight answers a row of 32 tokens
  assert answered[-2:] == [full, full // 2], 'six held-out rows, two of padding'
  assert all(n == full for n in answered[:4]) or pack == 'pad()' and min(answered[:4]) > 0
