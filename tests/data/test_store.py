"""Token stores: what is written is read, damage is named, nothing is overwritten."""

import json

import numpy as np
import pytest

from lmjax import registry
from lmjax.data import store
from lmjax.data import writer

TEXTS = ['To be', '', 'or not: caf\u00e9 \U0001f600', 'a' * 3000]


@pytest.fixture
def tok():
  return registry.make('tokenizer', 'bytes()')()


class Documents:
  def __init__(self, texts, key='x'):
    self.texts, self.key, self.reads = texts, key, 0

  def fingerprint(self):
    return self.key

  def __iter__(self):
    self.reads += 1
    return iter(self.texts)


@pytest.mark.parametrize('bos', [False, True])
@pytest.mark.parametrize('eos', [False, True])
def test_round_trip(tmp_path, tok, bos, eos):
  got = store.stored(Documents(TEXTS), tok, tmp_path, bos=bos, eos=eos)
  assert len(got) == len(TEXTS)
  for text, ids in zip(TEXTS, (got[i] for i in range(len(got)))):
    want = [tok.bos] * bos + list(text.encode()) + [tok.eos] * eos if text else []
    assert ids.tolist() == want
  assert got.bytes == sum(len(t.encode()) for t in TEXTS)
  assert got.words == 7 and got.bytes_per_token == got.bytes / len(got.tokens)
  assert got.tokens.dtype == np.uint16 and isinstance(got.tokens, np.memmap)
  got.verify()


def test_cache_is_used_and_keyed(tmp_path, tok):
  docs = Documents(TEXTS)
  first = store.stored(docs, tok, tmp_path)
  again = store.stored(docs, tok, tmp_path)
  assert docs.reads == 1 and first.fingerprint() == again.fingerprint()
  store.stored(docs, tok, tmp_path, eos=False)
  store.stored(docs, tok, tmp_path, bos=True)
  store.stored(Documents(TEXTS, 'y'), tok, tmp_path)
  store.stored(docs, registry.make('tokenizer', 'bytes(specials=False)')(), tmp_path)
  assert docs.reads == 4 and len(list(tmp_path.iterdir())) == 5


def test_fingerprint_follows_contents(tmp_path, tok):
  a, b, c = (
    store.stored(Documents(t, str(t)), tok, tmp_path, eos=False).fingerprint()
    for t in (['ab', 'c'], ['a', 'bc'], ['ab', 'd'])
  )
  assert len({a, b, c}) == 3


def test_wide_ids(tmp_path):
  with writer.StoreWriter(tmp_path / 's', vocab_size=100_000) as out:
    out.append([99_999, 0], [2])
  assert store.TokenStore.open(tmp_path / 's')[0].tolist() == [99_999, 0]


@pytest.mark.parametrize('ids', [[300], [-1]])
def test_ids_outside_the_vocabulary(tmp_path, ids):
  with pytest.raises(ValueError, match=f'id {ids[0]} .*0 ... 259'):
    with writer.StoreWriter(tmp_path / 's', vocab_size=260) as out:
      out.append(ids, [1])
  assert not list(tmp_path.iterdir()), 'a failed store leaves nothing'
  with pytest.raises(ValueError, match=f'id {ids[0]} '):
    store.TokenStore(np.array([1, *ids, 2]), [0, 3], fingerprint='').check_ids(260)


def test_nothing_is_overwritten(tmp_path):
  (tmp_path / 's').mkdir()
  (tmp_path / 's' / 'precious').write_text('x')
  with pytest.raises(ValueError, match='exists'):
    with writer.StoreWriter(tmp_path / 's', vocab_size=10) as out:
      out.append([1], [1])
  late = writer.StoreWriter(tmp_path / 't', vocab_size=10)
  with pytest.raises(ValueError, match='appeared'):
    with late as out:
      out.append([1], [1])
      (tmp_path / 't').mkdir()
  assert sorted(p.name for p in tmp_path.iterdir()) == ['s', 't']
  assert (tmp_path / 's' / 'precious').read_text() == 'x'


def test_another_process_was_faster(tmp_path, tok):
  """Both write the same store; the later one takes the earlier one's."""

  class Slow(Documents):
    def __iter__(self):
      yield 'abc'
      store.stored(Documents(['abc']), tok, tmp_path)

  assert store.stored(Slow(['abc']), tok, tmp_path)[0].tolist() == [*b'abc', tok.eos]
  assert len(list(tmp_path.iterdir())) == 1


def damaged(tmp_path, tok):
  folder = tmp_path / 'store'
  with writer.StoreWriter(
    folder, vocab_size=260, tokenizer=tok.fingerprint(), bos=False, eos=True
  ) as out:
    out.append(np.arange(100), [60, 40])
  return folder


@pytest.mark.parametrize('name, size', [('tokens.bin', 200), ('offsets.npy', 152)])
def test_truncation_is_named(tmp_path, tok, name, size):
  folder = damaged(tmp_path, tok)
  data = (folder / name).read_bytes()
  (folder / name).write_bytes(data[:-3])
  with pytest.raises(ValueError, match=f'{name} has {size - 3} bytes, meta.json says {size}'):
    store.TokenStore.open(folder)
  (folder / name).unlink()
  with pytest.raises(ValueError, match=f'{name} is missing'):
    store.TokenStore.open(folder)


@pytest.mark.parametrize('name, place', [('tokens.bin', 50), ('offsets.npy', 136)])
def test_a_flipped_bit_is_found(tmp_path, tok, monkeypatch, name, place):
  """A resume would train on other tokens in silence: the plan trusts meta.json."""
  folder = damaged(tmp_path, tok)
  data = bytearray((folder / name).read_bytes())
  data[place] ^= 1
  (folder / name).write_bytes(data)
  with pytest.raises(ValueError, match=f'store: .*{name}.*meta.json, so that a file is damaged'):
    store.TokenStore.open(folder)
  monkeypatch.setattr(store, 'CHECKED', 199)  # a larger store is read when asked
  with pytest.raises(ValueError, match=name):
    store.TokenStore.open(folder).verify()


def test_a_full_disk_is_named(tmp_path, tok):
  class Full:
    def write(self, data):
      raise OSError(28, 'No space left on device')

    def close(self):
      raise OSError(28, 'No space left on device')

  with pytest.raises(ValueError, match=f'{tmp_path}/s cannot be written: No space left on device'):
    with writer.StoreWriter(tmp_path / 's', vocab_size=260) as out:
      out._file.close()
      out._file = Full()
      out.append(np.arange(100), [60, 40])
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  'change, words',
  [
    (dict(dtype='float32'), "dtype='float32'"),
    (dict(format=99), 'format=99'),
    (dict(tokens=7), '7 tokens'),
    (dict(dtype=['x']), r"dtype is \['x'\], not a str"),
    (dict(tokens='7'), 'tokens is 7, not a int'),
    (dict(fingerprint=None), 'fingerprint is None, not a str'),
  ],
)
def test_bad_meta(tmp_path, tok, change, words):
  file = damaged(tmp_path, tok) / 'meta.json'
  file.write_text(json.dumps(json.loads(file.read_text()) | change))
  with pytest.raises(ValueError, match=words):
    store.TokenStore.open(file.parent)
  for text in ('{"format": 1', '[' * 100_000, '[1]', ''):
    file.write_text(text)
    with pytest.raises(ValueError, match='meta.json (is damaged|cannot be read)'):
      store.TokenStore.open(file.parent)
  file.unlink()
  with pytest.raises(ValueError, match='not a token store'):
    store.TokenStore.open(file.parent)


@pytest.mark.parametrize('offsets', [[0, 2], [1, 3], [0, 3, 2, 3], [], [0.0, 3.0]])
def test_offsets_that_do_not_fit(offsets):
  with pytest.raises(ValueError, match='offsets'):
    store.TokenStore(np.arange(3), offsets, fingerprint='')


def test_only_empty_documents(tmp_path, tok):
  with pytest.raises(ValueError, match='no text in it'):
    store.stored(Documents(['', '']), tok, tmp_path)


def test_prepared_with_other_settings(tmp_path, tok):
  source = registry.make('source', f'tokens(path={str(damaged(tmp_path, tok))!r})')
  assert len(store.stored(source, tok, tmp_path / 'cache')) == 2
  assert not (tmp_path / 'cache').exists(), 'ids are used in place'
  with pytest.raises(ValueError, match='prepared with eos=True, but eos=False'):
    store.stored(source, tok, tmp_path, eos=False)
  with pytest.raises(ValueError, match='another tokenizer'):
    store.stored(source, registry.make('tokenizer', 'bytes(specials=False)')(), tmp_path)


def test_unwritable_cache(tmp_path, tok):
  (tmp_path / 'file').write_text('x')
  with pytest.raises(ValueError, match='cannot write tokens'):
    store.stored(Documents(['a']), tok, tmp_path / 'file' / 'cache')
