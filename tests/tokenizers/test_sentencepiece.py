"""SentencePiece: Llama 2's ids, the merging rule by its definition, specials, and files that are
refused.
"""

import json
import sys

import hypothesis
from hypothesis import strategies as st
import pytest

import _tokenizers
from _tokenizers import make
from _tokenizers import quick
from lmjax import kinds


def test_llama2_vectors(test_data):
  folder = test_data / 'tokenizers' / 'llama2_32k'
  tok = make(f'sentencepiece(path="{folder}/tokenizer.bin.xz")')
  assert (tok.vocab_size, tok.bos, tok.eos, tok.pad, tok.mask) == (32000, 1, 2, None, None)
  lines = (folder / 'test_vectors.jsonl').read_text(encoding='utf8').splitlines()
  rows = [json.loads(line) for line in lines]
  assert len(rows) == 25
  for row in rows:
    assert tok.encode(row['text']).tolist() == row['ids'], row['text']
    assert tok.decode(row['ids']) == row['text']


@pytest.fixture(scope='module')
def llama2c(tmp_path_factory):
  return make(_tokenizers.ROWS['sentencepiece']['llama2c'](tmp_path_factory.mktemp('bin')))


@quick
@hypothesis.given(text=st.text('abc dé', min_size=1, max_size=20))
def test_llama2c_merges_the_best_pair_first(llama2c, text):
  """The definition, step by step: bytes are id + 3, then the adjacent pair of best score is merged,
  the leftmost of equals.
  """
  pieces = {' ': 259, 'a': 260, 'b': 261, 'c': 262, 'ab': 263, ' a': 264, 'bc': 265, '  ': 266}
  score = {'ab': -2.0, ' a': -3.0, 'bc': -1.0, '  ': -8.0}
  run = list(' ' + text)
  while pairs := [
    (-score[a + b], i) for i, (a, b) in enumerate(zip(run, run[1:])) if a + b in score
  ]:
    i = min(pairs)[1]
    run[i : i + 2] = [run[i] + run[i + 1]]
  want = [i for p in run for i in ([pieces[p]] if p in pieces else [b + 3 for b in p.encode()])]
  assert llama2c.encode(text).tolist() == want
  assert llama2c.decode(want) == text


@quick
@hypothesis.given(text=st.text(max_size=40) | st.text(' \n\ta', max_size=12))
def test_trained_sentencepiece_gives_text_back(sp_trained, text):
  text = text.replace('\u2581', '')  # the library's space sign comes back as a space
  assert sp_trained.decode(sp_trained.encode(text)) == text


@pytest.fixture(scope='module', params=['bpe', 'unigram'])
def sp_trained(request, tmp_path_factory):
  return make(_tokenizers.ROWS['sentencepiece'][request.param](tmp_path_factory.mktemp('sp')))


def test_sentencepiece_specials(tmp_path):
  path = _tokenizers.tricky(tmp_path)
  tok = make(f'sentencepiece(path="{path}")')
  assert (tok.bos, tok.eos, tok.pad, tok.vocab_size) == (1, 2, 3, 400) and tok.mask in (4, 5)
  named = make(f'sentencepiece(path="{path}", mask="[MASK]")')
  assert (named.mask, named.vocab_size) == (400, 401) and named.fingerprint() != tok.fingerprint()
  assert make(f'sentencepiece(path="{path}", mask=None)').mask is None
  own = make(f'sentencepiece(path="{path}", mask="<mask>")')
  assert (own.mask, own.vocab_size) == (tok.mask, 400) and own.mask not in own.encode('a <mask>')
  with pytest.raises(ValueError, match="mask='▁the' is an ordinary piece"):
    make(f'sentencepiece(path="{path}", mask="▁the")')


@pytest.mark.parametrize('module', ['sentencepiece', 'google.protobuf'])
def test_without_the_extra(tmp_path, monkeypatch, module):
  monkeypatch.setitem(sys.modules, module, None)
  with pytest.raises(kinds.Unsupported, match=r"pip install 'lmjax\[sentencepiece\]'"):
    make(f'sentencepiece(path="{tmp_path}/sp.model")')


def test_sentencepiece_refuses_damage(tmp_path):
  path = _tokenizers.llama2c(tmp_path)
  whole = path.read_bytes()
  model = _tokenizers.trained('sentencepiece', tmp_path, 330).read_bytes()
  cases = (
    (whole[:-3], 'cut off: id 266'),
    (whole[:-1], 'cut off: id 266'),
    (whole[:2000], 'cut off'),
    (whole + b'\0\0', 'cut off'),
    (whole.replace(b'\x01\0\0\0A', b'\x01\0\0\0B'), 'the byte 0x41 is expected'),
    (b'\x40' + whole[1:], 'announces a piece of 64 bytes'),
    (model[:-40], 'cut off'),
    (model[:500], 'cut off'),
    (b'{"model": {}}', 'not a SentencePiece'),
    (b'', 'not a SentencePiece'),
  )
  for data, words in cases:
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f'{path}.*{words}'):
      make(f'sentencepiece(path="{path}")')
