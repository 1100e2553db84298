"""N-grams: probabilities against counting, files, and the command that writes them."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import _counts
import _table
from lmjax import generate
from lmjax import ngrams as ngrams_command
from lmjax import registry
from lmjax.data import store as store_lib
from lmjax.decoding import _base
from lmjax.decoding import _ngrams


@pytest.fixture(scope='module')
def path(tmp_path_factory) -> pathlib.Path:
  path = tmp_path_factory.mktemp('ngrams') / 'n.npz'
  _ngrams.save(path, _ngrams.build(_counts.IDS, _counts.OFFSETS), 'abc')
  return path


def test_probabilities_are_those_of_counting(path):
  """Tails that occur, tails that do not, and tails with nothing at the front."""
  tables, counts = _ngrams.load(path, 6), _counts.counted(6)
  rng = np.random.default_rng(2)
  at = rng.integers(5, 3000, 60)
  tails = np.stack([_counts.IDS[at - g] for g in (5, 4, 3, 2, 1)], axis=1).astype(np.int32)
  tails[20:40] = rng.integers(0, 6, (20, 5))
  tails[50:, :3] = -1
  tails[59] = -1
  tokens = np.tile(np.arange(6, dtype=np.int32), (60, 1))
  got = jax.jit(lambda *a: _ngrams.probabilities(*a, _counts.WEIGHTS))(tables, tails, tokens)
  want = [
    [_counts.expected(counts, [t for t in row if t >= 0], v) for v in range(6)] for row in tails
  ]
  np.testing.assert_allclose(got, want, atol=1e-6)
  assert (np.max(want, axis=1) > 0.05).sum() > 30 and np.min(want) == 0


def test_documents_are_apart_and_short_ones_count():
  arrays = _ngrams.build([1, 2, 3, 0, 1], [0, 2, 2, 5], order=4)
  assert arrays['tokens_1'].tolist() == [0, 1, 2, 3] and arrays['counts_1'].tolist() == [1, 2, 1, 1]
  assert arrays['starts_1'].tolist() == [0, 1, 2, 2, 3]  # 01, 12, 30; no 23
  assert arrays['tokens_2'].tolist() == [1, 2, 0] and arrays['tokens_3'].tolist() == [1]
  assert arrays['tokens_4'].tolist() == [] and arrays['starts_3'].tolist() == [0, 0]
  tables = _ngrams.Tables(*[()] * 4).replace(**_levels(arrays))
  got = _ngrams.probabilities(tables, jnp.int32([[1, 2, 3]]), jnp.int32([[0, 1]]), (1.0, 1.0, 1.0))
  np.testing.assert_allclose(got, [[1.0, 0.0]])


def _levels(arrays):
  tokens, counts = (
    [jnp.asarray(arrays[f'{k}_{n}']) for n in (1, 2, 3, 4)] for k in ('tokens', 'counts')
  )
  starts = [jnp.asarray(arrays[f'starts_{n}']) for n in (1, 2, 3)]
  sums = [np.concatenate([[0], np.cumsum(c)]) for c in counts[1:]]
  followed = [jnp.asarray(np.diff(s[b]), jnp.int32) for s, b in zip(sums, starts)]
  return dict(tokens=tokens, counts=counts, starts=starts, followed=followed)


class Tokenizer:
  def fingerprint(self):
    return 'xyz'


def test_files_that_do_not_serve_are_refused(path, tmp_path):
  (tmp_path / 'text.npz').write_text('no zip')
  np.savez(tmp_path / 'other.npz', a=np.zeros(3))
  np.save(tmp_path / 'array.npy', np.zeros(3))
  whole = path.read_bytes()
  (tmp_path / 'half.npz').write_bytes(whole[: len(whole) // 2])
  arrays = _ngrams.build(_counts.IDS, _counts.OFFSETS)
  arrays['starts_2'] = arrays['starts_2'] + 1
  _ngrams.save(tmp_path / 'bent.npz', arrays)
  _ngrams.save(tmp_path / 'short.npz', _ngrams.build(_counts.IDS, _counts.OFFSETS, order=3))
  rule = lambda file: _base.rule(f'superposed_decoding(ngrams={str(tmp_path / file)!r})')
  for file, words in {
    'none.npz': 'none.npz.*No such file',
    'text.npz': 'text.npz.*holds no counts',
    'other.npz': 'other.npz.*holds no counts',
    'array.npy': 'array.npy.*holds no counts',
    'half.npz': 'half.npz.*holds no counts',
    'bent.npz': 'bent.npz.*starts of level 2',
    'short.npz': 'up to 3 tokens, but 5 weights need 6',
  }.items():
    with pytest.raises(ValueError, match=words) as e:
      rule(file).load(6)
    assert '\n' not in str(e.value)
  with pytest.raises(ValueError, match='holds the id 5, but the model has 5 tokens'):
    _ngrams.load(path, 5)
  with pytest.raises(ValueError, match='another tokenizer'):
    _ngrams.load(path, 6, Tokenizer())
  net = _table.model(length=64)
  before = generate.prefill._cache_size()
  with pytest.raises(ValueError, match='none.npz'):
    spec = f'superposed_decoding(ngrams={str(tmp_path / "none.npz")!r})'
    generate.generate(net, {}, [[1]], max_tokens=3, rule=spec)
  assert generate.prefill._cache_size() == before


def test_the_command_counts_a_store(tmp_path, capsys):
  """The fingerprint of the tokenizer goes along; what is there is not overwritten."""
  (tmp_path / 'a.txt').write_text('abcab')
  tokenizer = registry.make('tokenizer', 'bytes()')()
  source = registry.make('source', f'text(path={str(tmp_path / "a.txt")!r})')
  store_lib.stored(source, tokenizer, tmp_path / 'tokens', eos=False, progress=False)
  (store,) = (tmp_path / 'tokens').iterdir()
  out = tmp_path / 'n.npz'
  flags = [f'--store={store}', f'--out={out}', '--order=3']
  assert ngrams_command.main(flags) == 0
  tables = _ngrams.load(out, 260, tokenizer)
  assert tables.order == 3 and tables.tokens[0].tolist() == [97, 98, 99]
  assert tables.counts[1].tolist() == [2, 1, 1]  # ab, bc, ca
  with pytest.raises(ValueError, match='another tokenizer'):
    _ngrams.load(out, 260, Tokenizer())
  assert ngrams_command.main(flags) == 2 and 'exists' in capsys.readouterr().err
  assert ngrams_command.main([*flags[:1], f'--out={tmp_path / "m"}', '--order=1']) == 2
  assert 'order=1' in capsys.readouterr().err
  assert ngrams_command.main([f'--store={tmp_path}', f'--out={tmp_path / "m"}']) == 2
  assert 'not a token store' in capsys.readouterr().err
