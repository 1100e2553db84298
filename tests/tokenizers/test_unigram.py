"""Unigram: the best cut by its definition, ids and texts as the library has them, specials and
sentinels, and files that are refused.
"""

import base64
import json
import math

import hypothesis
from hypothesis import strategies as st
import pytest
from tokenizers import Tokenizer

import _tokenizers
from _tokenizers import make
from _tokenizers import quick
from lmjax import kinds
from lmjax import registry

ORDINARY = (
  'the cat no. 3 kalo sunter',
  '  two  spaces, leading and trailing ',
  'lines\n\n\tand tabs\r\n',
  'naïve 北京 café ﬁne \u3000 \U0001f600\U0001f600 ½',
  '▁ ▁the',
  'x' * 40,
)


@pytest.fixture(scope='module', params=[False, True], ids=['unknown', 'bytes'])
def path(request, tmp_path_factory):
  return _tokenizers.unigram(tmp_path_factory.mktemp('u'), byte_fallback=request.param)


def test_ids_and_texts_are_those_of_the_library(path):
  tok, library = make(f'unigram(path="{path}")'), Tokenizer.from_file(str(path))
  for text in (*ORDINARY, _tokenizers.TEXT):
    want = library.encode(text, add_special_tokens=False).ids
    assert tok.encode(text).tolist() == want and len(want) > 2, text
    if tok.unknown not in want:
      assert tok.decode(want) == library.decode(want)


def test_the_whole_text_comes_back_where_bytes_have_pieces(tmp_path):
  tok = make(f'unigram(path="{_tokenizers.unigram(tmp_path, byte_fallback=True)}")')
  for text in ORDINARY[:4]:
    assert tok.decode(tok.encode(text)) in (text, text.removeprefix(' ')), text


@quick
@hypothesis.given(text=st.text('abc', min_size=1, max_size=8))
def test_the_cut_has_the_best_score(best, text):
  """By trying all: scores of pieces are added up, the largest sum wins."""
  tok, score = best

  def cut(rest):
    if not rest:
      return 0.0, []
    found = [(score[rest[:n]], rest[:n], cut(rest[n:])) for n in (1, 2, 3) if rest[:n] in score]
    return max((x + s, [p, *more]) for x, p, (s, more) in found)

  ids = tok.encode(text).tolist()
  got = [list(score)[i - 1] for i in ids]
  assert ''.join(got) == text
  assert math.isclose(sum(score[p] for p in got), cut(text)[0], abs_tol=1e-9)


@pytest.fixture(scope='module')
def best(tmp_path_factory):
  score = {'a': -2.0, 'b': -2.5, 'c': -1.5, 'ab': -3.1, 'bc': -4.2, 'abc': -5.0, 'ca': -3.4}
  spec = dict(version='1.0', added_tokens=[], model=dict(type='Unigram', unk_id=0))
  spec['model']['vocab'] = [['<unk>', 0.0], *map(list, score.items())]
  path = tmp_path_factory.mktemp('best') / 'tokenizer.json'
  path.write_text(json.dumps(spec))
  return make(f'unigram(path="{path}")'), score


def test_specials_and_sentinels(tmp_path):
  path = _tokenizers.unigram(tmp_path, extra=3)
  tok = make(f'unigram(path="{path}")')
  n = tok.vocab_size
  assert (tok.pad, tok.eos, tok.unknown, tok.bos, tok.mask) == (0, 1, 2, None, None)
  assert tok.extra == (n - 1, n - 2, n - 3)  # <extra_id_0> is the last id, as in T5
  cat = tok.encode('cat').tolist()
  assert tok.decode([*tok.extra, *cat, tok.eos, tok.pad]) == 'cat'
  hidden = {0, 1, 2, *tok.extra}
  assert not hidden & set(tok.encode('<extra_id_0></s><pad> cat').tolist()) - {tok.unknown}
  assert make(f'unigram(path="{path}", eos=None, mask="</s>")').mask == 1
  with pytest.raises(ValueError, match=f"{path}: bos='<s>' is not in its vocabulary"):
    make(f'unigram(path="{path}", bos="<s>")')
  with pytest.raises(ValueError, match="eos='<unk>' is what unknown characters become"):
    make(f'unigram(path="{path}", eos="<unk>")')


def test_the_sign_of_the_unknown_is_spelled_in_a_text(tmp_path):
  """Its score is the best of all, and its name stands in the library's own table of pieces."""
  path = _tokenizers.unigram(tmp_path, byte_fallback=True)
  tok = make(f'unigram(path="{path}")')
  assert (
    tok.unknown not in tok.encode('<unk>').tolist() and tok.decode(tok.encode('<unk>')) == '<unk>'
  )


def test_sentinels_serve_a_transform(tmp_path):
  spec = f'unigram(path="{_tokenizers.unigram(tmp_path, extra=40)}")'
  chain = registry.make_chain('transform', 'ul2()', tokenizer=make(spec), length=32)
  assert [part() for _, part in chain.items()]


def changed(path, **model):
  spec = json.loads(path.read_text())
  outer = {k: model.pop(k) for k in list(model) if k in spec}
  spec['model'] |= model
  path.write_text(json.dumps(spec | outer))


def table(data: bytes):
  text = base64.b64encode(data).decode()
  return dict(type='Precompiled', precompiled_charsmap=text)


def entry(content, i, special=True):
  flags = dict(single_word=False, lstrip=False, rstrip=False, normalized=False)
  return dict(id=i, content=content, special=special, **flags)


@pytest.mark.parametrize(
  'change, words',
  [
    (dict(type='WordLevel'), "its model is 'WordLevel'"),
    (dict(vocab=[]), 'different pieces'),
    (dict(vocab=[['a', 0.0], ['a', 0.0]], added_tokens=[]), 'different pieces'),
    (dict(vocab=[['a', 'b']], added_tokens=[]), 'different pieces'),
    (dict(vocab={'a': 1}), 'different pieces'),
    (dict(added_tokens=[entry('</s>', 7)]), 'ids agree'),
    (dict(added_tokens=[entry('<new>', 9999)]), 'without gaps'),
    (dict(added_tokens=[entry('<extra_id_1>', 150)]), 'no <extra_id_0>'),
    (dict(unk_id=None), 'unk_id=None'),
    (dict(unk_id=None, byte_fallback=True), 'neither unk_id nor the byte 0x00'),
    (dict(unk_id=99999), 'unk_id=99999'),
    (dict(pre_tokenizer=dict(type='Nothing')), 'cannot be used'),
    (dict(normalizer=table(b'')), 'precompiled_charsmap'),
    (dict(normalizer=table(b'\0\0\1\0abc')), 'precompiled_charsmap'),
    (dict(normalizer=dict(type='Sequence', normalizers=[table(b'x' * 99)])), 'charsmap'),
    (dict(normalizer=dict(type='Precompiled', precompiled_charsmap='!')), 'charsmap'),
  ],
)
def test_other_files_are_refused(tmp_path, change, words):
  path = _tokenizers.unigram(tmp_path, extra=0)
  assert len(json.loads(path.read_text())['model']['vocab']) == 150
  changed(path, **change)
  with pytest.raises(ValueError, match=words) as e:
    make(f'unigram(path="{path}")')
  assert str(path) in str(e.value) and '\n' not in str(e.value)


def test_a_table_that_leads_nowhere_is_refused(tmp_path):
  """The library panics over it, which is no Exception of Python."""
  path = _tokenizers.unigram(tmp_path)
  changed(path, normalizer=table((1024).to_bytes(4, 'little') + b'\xff' * 1024))
  with pytest.raises(ValueError, match=f'{path} cannot be used'):
    make(f'unigram(path="{path}")')


def test_an_added_token_that_is_text_is_refused(tmp_path):
  path = _tokenizers.unigram(tmp_path, extra=0)
  changed(path, added_tokens=[entry('hello', 150, special=False)])
  with pytest.raises(kinds.Unsupported, match="'hello' is no special"):
    make(f'unigram(path="{path}")')
