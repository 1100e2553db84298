"""Byte-level BPE: GPT-2's ids, the library's ids, and files that are refused."""

import json
import lzma

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

import _tokenizers
from _tokenizers import make
from _tokenizers import quick
from lmjax import registry
from lmjax.tokenizers import bpe as bpe_lib

WORDS = [
  'cat',
  ' cat',
  ' the',
  '\n\n',
  ' no.',
  '  ',
  '\n',
  "'s",
  '12',
  '!?',
  '\x1c',
  '\u3000',
  '\xa0',
  '北',
]


def test_gpt2_vectors(test_data):
  folder = test_data / 'tokenizers' / 'gpt2'
  tok = make(f'bpe(path="{folder}")')
  assert (tok.vocab_size, tok.bos, tok.eos, tok.pad, tok.mask) == (50257, None, 50256, None, None)
  lines = (folder / 'test_vectors.jsonl').read_text(encoding='utf8').splitlines()
  lines += lzma.open(folder / 'corpus_vectors.jsonl.xz', 'rt', encoding='utf8').read().splitlines()
  rows = [json.loads(line) for line in lines]
  assert len(rows) == 46 + 172
  for row, ids in zip(rows, tok.encode_batch([r['text'] for r in rows]), strict=True):
    assert ids.tolist() == row['ids'] and tok.decode(row['ids']) == row['text'], row['text']
  assert tok.encode('<|endoftext|>').tolist() == [27, 91, 437, 1659, 5239, 91, 29]


def _reference(tok_json, text):
  """The library itself on the untouched file."""
  from tokenizers import Tokenizer

  library = Tokenizer.from_str(tok_json)
  library.no_truncation()
  return library.encode(text, add_special_tokens=False).ids


def test_bpe_gives_the_ids_of_the_library(tmp_path):
  path = _tokenizers.rich(tmp_path)
  tok = make(f'bpe(path="{path}")')
  text = 'the   cat 12345 sat, naïve  \n   x'
  assert tok.encode(text).tolist() == _reference(path.read_text(), text)
  assert (tok.encode(text) == 301).sum() == 2  # the ordinary added token is still found
  assert (tok.vocab_size, tok.eos, tok.mask) == (303, 0, 300)
  named = make(f'bpe(path="{path}", eos=None, mask="   ")')
  assert named.mask == 301 and 301 not in named.encode(text)
  for special in ('<|user|>', '<|endoftext|>'):  # with a role or without
    ids = tok.encode(f'a{special}')
    assert len(ids) > 2 and ids.max() < 300 and tok.decode(ids) == f'a{special}'


@quick
@hypothesis.given(words=st.lists(st.sampled_from(WORDS), max_size=40), chunk=st.integers(1, 9))
def test_long_texts_are_cut_where_no_token_is(tok_trained, words, chunk):
  text = ''.join(words)
  whole = tok_trained.encode(text)
  old, bpe_lib._CHUNK = bpe_lib._CHUNK, chunk
  try:
    np.testing.assert_array_equal(tok_trained.encode(text), whole)
  finally:
    bpe_lib._CHUNK = old


@pytest.fixture(scope='module')
def tok_trained(tmp_path_factory):
  path = _tokenizers.trained('bpe', tmp_path_factory.mktemp('trained'), 460)
  return make(f'bpe(path="{path}")')


def _edit(spec, key, value):
  *path, last = key.split('.')
  for k in path:
    spec = spec[k]
  spec[last] = value


BAD_JSON = {
  'normalizer': (dict(type='NFC'), 'normalizer NFC changes the text'),
  'pre_tokenizer.add_prefix_space': (True, 'add_prefix_space'),
  'pre_tokenizer': (dict(type='Metaspace'), 'not byte-level .*Metaspace'),
  'model.dropout': (0.1, 'model.dropout=0.1'),
  'model.end_of_word_suffix': ('</w>', 'end_of_word_suffix'),
  'model.type': ('WordPiece', 'holds a WordPiece model'),
  'model.merges': ([['a', 'nope']], 'cannot be loaded'),
  'model.vocab.x9': (2000, 'no entry has id 300'),
  'model.vocab.x8': (5, 'id 5 is given twice'),
  'model.vocab.x7': ('5', "the id of 'x7' is '5'"),
  'model.vocab': ({'a': 0}, '255 of the 256 bytes have no token'),
  'model': (3, 'not a tokenizer.json'),
  'added_tokens': (
    [dict(id=7, content='<|endoftext|>', special=True)],
    'is id 7 in added_tokens and 0 in the vocab',
  ),
}


@pytest.mark.parametrize('key', BAD_JSON)
def test_bpe_refuses(tmp_path, key):
  path = _tokenizers.trained('bpe', tmp_path, 300)
  spec = json.loads(path.read_text())
  value, words = BAD_JSON[key]
  _edit(spec, key, value)
  path.write_text(json.dumps(spec))
  with pytest.raises(ValueError, match=f'{path}.*{words}'):
    make(f'bpe(path="{path}")')


def test_bpe_with_a_normalizer_where_asked(tmp_path):
  path = _tokenizers.trained('bpe', tmp_path, 300)
  spec = json.loads(path.read_text()) | {'normalizer': dict(type='Lowercase')}
  path.write_text(json.dumps(spec))
  part = registry.make('tokenizer', f'bpe(path="{path}", lossless=False)')
  assert part.fact('lossless') is False
  assert part().decode(part().encode('The CAT')) == 'the cat'


def test_bpe_pair_refuses_damage(tmp_path):
  folder = _tokenizers.pair(tmp_path)
  spec, merges = f'bpe(path="{folder}")', folder / 'vocab.bpe'
  whole = merges.read_text()
  cut = whole[: whole.index('\n', 200)]
  for text, words in (
    (cut, 'may be cut off'),
    (whole + 'c', 'line [0-9]+ is'),
    (whole + 'q zz', "uses 'zz'"),
  ):
    merges.write_text(text)
    with pytest.raises(ValueError, match=words):
      make(spec)
  merges.unlink()
  with pytest.raises(ValueError, match='neither encoder.json and vocab.bpe'):
    make(spec)


def test_bpe_special_names(tmp_path):
  path = _tokenizers.trained('bpe', tmp_path, 300)
  with pytest.raises(ValueError, match="pad='<pad>' is not a special"):
    make(f'bpe(path="{path}", pad="<pad>")')
  with pytest.raises(ValueError, match="mask='a' is not a special"):
    make(f'bpe(path="{path}", mask="a")')
  tok = make(f'bpe(path="{path}", eos=None, mask="<mask>")')
  assert (tok.eos, tok.mask, tok.vocab_size) == (None, 300, 301)
  assert tok.fingerprint() != make(f'bpe(path="{path}", mask="<mask>")').fingerprint()


def test_variables_in_paths(test_data, monkeypatch):
  monkeypatch.setenv('LMJAX_DATA', str(test_data))
  part = registry.make('tokenizer', 'bpe(path="$LMJAX_DATA/tokenizers/gpt2")')
  assert part().decode(part().encode('a cat')) == 'a cat'
