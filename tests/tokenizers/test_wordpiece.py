"""WordPiece: what a text becomes, piece by piece; files that are refused."""

import json

import pytest

import _tokenizers
from lmjax import registry


def make(path, **args):
  told = ''.join(f', {k}={v!r}' for k, v in args.items())
  return registry.make('tokenizer', f'wordpiece(path="{path}"{told})')()


def pieces(tok, text):
  return [tok._pieces[i] for i in tok.encode(text)]


def test_words_are_cut_into_the_longest_pieces_from_the_left(tmp_path):
  tok = make(_tokenizers.wordpiece(tmp_path))
  assert pieces(tok, 'the  catting.') == ['the', 'cat', '##t', '##ing', '.']
  assert tok.decode(tok.encode('the  catting.')) == 'the catting .'
  assert pieces(tok, 'cat \u2603 ' + 'a' * 101) == ['cat', '[UNK]', '[UNK]']
  assert (tok.pad, tok.unknown, tok.bos, tok.eos, tok.mask) == (0, 1, 2, 3, 4)
  assert tok.decode([2, *tok.encode('cat'), 3]) == 'cat' and tok.decode([1]) == '[UNK]'
  assert pieces(tok, 'CAT') != ['cat']


def test_case_is_what_the_file_says(tmp_path):
  tok = make(_tokenizers.wordpiece(tmp_path, lowercase=True))
  assert pieces(tok, 'The CAT') == ['the', 'cat']


def test_a_special_in_a_text_is_none_also_where_words_are_cut_at_spaces_alone(tmp_path):
  path = _tokenizers.wordpiece(tmp_path)
  spec = json.loads(path.read_text()) | dict(pre_tokenizer=dict(type='WhitespaceSplit'))
  path.write_text(json.dumps(spec))
  assert pieces(make(path), 'cat [MASK] [SEP]') == ['cat', '[UNK]', '[UNK]']


@pytest.mark.parametrize(
  'change, words',
  [
    (dict(type='BPE'), "its model is 'BPE'"),
    (dict(vocab={'[UNK]': 1, 'a': 7}), 'without gaps'),
    (dict(vocab=['a', 'b']), 'without gaps'),
    (dict(unk_token='<unk>'), 'unk_token among its pieces'),
    (dict(max_input_chars_per_word='x'), 'cannot be loaded'),
  ],
)
def test_other_files_are_refused(tmp_path, change, words):
  path = _tokenizers.wordpiece(tmp_path)
  spec = json.loads(path.read_text())
  spec['model'] |= change
  path.write_text(json.dumps(spec))
  with pytest.raises(ValueError, match=words) as e:
    make(path)
  assert str(path) in str(e.value)


def test_a_special_that_is_not_there_is_refused(tmp_path):
  with pytest.raises(ValueError, match="mask='<mask>' is not in its vocabulary"):
    make(_tokenizers.wordpiece(tmp_path), mask='<mask>')
