"""Tokenizers of folders: which file counts, ids and texts as `transformers` has them, what export
writes, and every way in which a file may be wrong.
"""

import json

import pytest

import _hf_folders as _tiny
import _tokenizers
from lmjax import restore
from lmjax import sample
from lmjax.interop import __main__ as command
from lmjax.interop.hf import _exporting
from lmjax.interop.hf import _importing
from lmjax.interop.hf import _tokenizer
from lmjax.tokenizers import _bpe_files
from lmjax.tokenizers import bpe
from lmjax.tokenizers import sentencepiece

SPIECE = 'spiece.model'
TEXTS = (
  'the cat no. 3 kalo sunter',
  '  Two  spaces, leading and trailing ',
  'lines\n\n\tand tabs\r\n',
  "Naïve 北京 café ﬁne \u3000 \U0001f600 ½ didn't",
  'x' * 120,
)


def library():
  return pytest.importorskip('transformers', reason='transformers is in the extra test-heavy')


def folder(path, **config):
  return _tiny.folder(path, vocab_size=600, **config)


def found(path, model_type='llama', **config):
  return _tokenizer.find(path, dict(model_type=model_type, **config))


def trained(path, **options):
  """A model of SentencePiece at this path."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(sentencepiece.SentencePiece.train([_tokenizers.TEXT], 400, **options))
  return path


def t5_pieces(path):
  """A spiece.model with T5's ids of specials and its normalization."""
  import sentencepiece as spm

  path.mkdir()
  spm.SentencePieceTrainer.train(
    sentence_iterator=iter(_tokenizers.TEXT.split('\n')),
    model_prefix=str(path / 'spiece'),
    vocab_size=180,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    minloglevel=2,
  )
  (path / 'config.json').write_text('{"model_type": "t5"}')
  return path


def test_unigram_agrees_with_transformers(tmp_path):
  theirs = library().PreTrainedTokenizerFast(tokenizer_file=str(_tokenizers.unigram(tmp_path)))
  tok = found(tmp_path).made()
  for text in TEXTS:
    ids = theirs.encode(text, add_special_tokens=False)
    assert tok.encode(text).tolist() == ids and len(ids) > 3, text
    assert tok.decode([i for i in ids if i != tok.unknown]) == theirs.decode(
      ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
  for i in range(5):
    assert tok.extra[i] == theirs.convert_tokens_to_ids(f'<extra_id_{i}>')


def test_t5s_own_files_agree_with_transformers(tmp_path):
  """Its table of characters, and sentinels that stand among the pieces."""
  theirs = library().T5Tokenizer.from_pretrained(str(t5_pieces(tmp_path / 'in')))
  theirs.save_pretrained(tmp_path / 'json')
  text = json.loads((tmp_path / 'json' / 'tokenizer.json').read_text())
  assert text['model']['type'] == 'Unigram' and text['model']['vocab'][-1][0] == '<extra_id_0>'
  by_json = found(tmp_path / 'json', 't5', eos_token_id=1, pad_token_id=0)
  made = found(tmp_path / 'in', 't5')
  assert made.part == 'unigram' and not made.bos and SPIECE in made.told
  same = made.made()
  loaded = library().PreTrainedTokenizerFast(tokenizer_file=str(made.files[0]))
  spoken = found(tmp_path / 'in')
  assert (by_json.part, spoken.part) == ('unigram', 'sentencepiece')
  assert not by_json.bos and not spoken.bos
  tok, pieces = by_json.made(), spoken.made()
  assert (tok.eos, tok.pad, tok.unknown, tok.vocab_size) == (1, 0, 2, 280)
  assert (pieces.eos, pieces.pad, pieces.bos, pieces.vocab_size) == (1, 0, None, 180)
  assert [tok.extra[i] for i in (0, 99)] == theirs.convert_tokens_to_ids(
    ['<extra_id_0>', '<extra_id_99>']
  )
  for text in TEXTS:
    ids = theirs.encode(text, add_special_tokens=False)
    assert tok.encode(text).tolist() == same.encode(text).tolist() == ids, text
    assert loaded.encode(text, 'b') == theirs.encode(text, 'b')
    known = [i for i in ids if i != 2]
    assert tok.decode(known) == theirs.decode(known, clean_up_tokenization_spaces=False)
  for text in TEXTS[:3]:
    assert pieces.encode(text).tolist() == tok.encode(text).tolist(), text


def test_t5s_pieces_get_sentinels(tmp_path):
  """Without transformers: they go on behind the file's own, the first one last."""
  path = t5_pieces(tmp_path / 'in')
  tok, alone = found(path, 't5').made(), found(path, 'llama').made()
  assert tok.extra == tuple(range(279, 179, -1)) and not hasattr(alone, 'extra')
  assert (tok.eos, tok.pad, tok.unknown, tok.bos) == (1, 0, 2, None)
  for text in TEXTS[:3]:
    ids = alone.encode(text).tolist()
    known = [i for i in ids if i != tok.unknown]
    assert tok.encode(text).tolist() == ids and tok.decode(known) == alone.decode(known)
  (path / 'tokenizer_config.json').write_text('{"extra_ids": 3}')
  assert found(path, 't5').made().extra == (182, 181, 180)
  (path / 'tokenizer_config.json').write_text('{"extra_ids": -1}')
  with pytest.raises(ValueError, match='tokenizer_config.json: extra_ids=-1: 0 to 10000'):
    found(path, 't5')


def test_a_folder_of_t5_with_pieces_alone(tmp_path):
  from test_hf_t5 import CONFIG
  from test_hf_t5 import shapes

  path = t5_pieces(tmp_path / 'pieces')
  _tiny.folder(tmp_path / 'in', CONFIG, _tiny.arrays(shapes()))
  (path / SPIECE).rename(tmp_path / 'in' / SPIECE)
  told = _importing.to_run(str(tmp_path / 'in'), str(tmp_path / 'run'))
  assert told['tokenizer'].endswith('(tokenizer.json was made of spiece.model)')
  run = restore.load(tmp_path / 'run')[0]
  task = run.transforms[0].fn
  ids = task.encode('the <extra_id_0> cat')
  assert 279 in ids and task.decode(ids) == 'the<extra_id_0>cat'
  out = exported(tmp_path / 'run', tmp_path / 'out')
  assert found(out, 't5').made().fingerprint() == run.tokenizer.fingerprint()


@pytest.mark.parametrize('options', [dict(model_type='bpe'), {}])
def test_pieces_that_are_not_t5s_are_refused(tmp_path, options):
  trained(tmp_path / SPIECE, **options)  # it keeps spaces as they are
  with pytest.raises(ValueError, match=f'{SPIECE}: a model of type unigram is expected, which'):
    found(tmp_path, 't5')
  (tmp_path / SPIECE).write_text('version https://git-lfs')
  with pytest.raises(ValueError, match=f'{SPIECE} is not a SentencePiece .model'):
    found(tmp_path, 't5')


def words(path, settings=None, lines=None):
  """A folder of BERT with vocab.txt alone."""
  path.mkdir()
  spec = json.loads(_tokenizers.wordpiece(path).read_text())
  (path / 'tokenizer.json').unlink()
  lines = list(spec['model']['vocab']) if lines is None else lines
  lines += ['naive', 'two', 'Two'] if len(lines) > 9 else []
  (path / 'vocab.txt').write_text(''.join(f'{x}\n' for x in lines), 'utf-8', newline='')
  if settings is not None:
    (path / 'tokenizer_config.json').write_text(json.dumps(settings))
  (path / 'config.json').write_text('{"model_type": "bert"}')
  return path


@pytest.mark.parametrize(
  'settings',
  [
    None,
    dict(do_lower_case=False),
    dict(strip_accents=False, tokenizer_class='BertTokenizer'),
    dict(do_lower_case=False, strip_accents=True, tokenize_chinese_chars=False),
  ],
)
def test_words_agree_with_transformers(tmp_path, settings):
  path = words(tmp_path / 'in', settings)
  theirs = library().BertTokenizer.from_pretrained(str(path))
  got = found(path, 'bert')
  assert got.part == 'wordpiece' and got.bos and 'vocab.txt' in got.told
  tok = got.made()
  for text in TEXTS:
    ids = theirs.encode(text, add_special_tokens=False)
    assert tok.encode(text).tolist() == ids and len(set(ids)) > 1 - (text[:3] == 'xxx'), text
  assert [tok.bos, *tok.encode('cat').tolist(), tok.eos] == theirs.encode('cat')
  made = library().PreTrainedTokenizerFast(tokenizer_file=str(got.files[0]))  # with its template
  assert made.encode('cat', 'the') == theirs.encode('cat', 'the')
  assert (tok.pad, tok.mask) == (theirs.pad_token_id, theirs.mask_token_id)


def test_case_and_accents_are_those_of_the_settings(tmp_path):
  """Without transformers: the same rules, in three texts."""
  pieces = lambda tok, text: [tok._pieces[i] for i in tok.encode(text)]
  lower = found(words(tmp_path / 'a'), 'bert').made()
  assert pieces(lower, 'TWO naïve') == ['two', 'naive'] and lower.pad == 0
  cased = found(words(tmp_path / 'b', dict(do_lower_case=False)), 'bert').made()
  assert pieces(cased, 'Two two') == ['Two', 'two'] and pieces(cased, 'naïve')[0] != 'naive'
  kept = found(words(tmp_path / 'c', dict(strip_accents=False)), 'bert').made()
  assert pieces(kept, 'naïve') != ['naive'] and pieces(kept, 'Two') == ['two']
  assert lower.fingerprint() == found(words(tmp_path / 'd'), 'bert').made().fingerprint()


def test_words_of_other_names(tmp_path):
  named = dict(cls_token='<s>', sep_token=dict(content='</s>'), unk_token='<unk>', pad_token='<p>')
  lines = ['<p>', '<unk>', '<s>', '</s>', 'a']
  tok = found(words(tmp_path / 'in', named, lines), 'bert').made()
  assert (tok.pad, tok.unknown, tok.bos, tok.eos, tok.mask) == (0, 1, 2, 3, None)
  assert tok.encode('a <s> \r').tolist()[0] == 4
  (tmp_path / 'in' / 'vocab.txt').write_bytes('\r\n'.join(lines).encode())
  assert found(tmp_path / 'in', 'bert').made().vocab_size == 5


# ------------------------------------------------------------------ there and back


def exported(run, out):
  _exporting.to_folder(str(run), str(out))
  return out


@pytest.mark.parametrize('name', ['tokenizer.model', 'spiece.model'])
def test_a_folder_of_sentencepiece_there_and_back(tmp_path, name, capsys):
  path = _tiny.folder(tmp_path / 'in', vocab_size=400)
  data = trained(path / name).read_bytes()
  told = _importing.to_run(str(path), str(tmp_path / 'run'))
  (path / name).unlink()  # the run has its own
  run = restore.load(tmp_path / 'run')[0]
  want = _tokenizers.make(f'sentencepiece(path="{tmp_path / "run" / name}")')
  for text in TEXTS:
    assert run.tokenizer.encode(text).tolist() == want.encode(text).tolist()
  assert name in told['tokenizer'] and run.config['data']['bos'] is (name == 'tokenizer.model')
  flags = [f'--workdir={tmp_path / "run"}', '--prompt=the', '--tokens=3', '--rule=greedy()']
  assert sample.main(flags) == 0 and 'the' in capsys.readouterr().out
  out = exported(tmp_path / 'run', tmp_path / 'out')
  assert (out / name).read_bytes() == data
  settings = json.loads((out / 'tokenizer_config.json').read_text())
  assert settings.get('add_bos_token', False) is (name == 'tokenizer.model')
  assert found(out).bos is (name == 'tokenizer.model')


def test_a_folder_of_unigram_there_and_back(tmp_path):
  path = folder(tmp_path / 'in', eos_token_id=1, pad_token_id=0)
  text = _tokenizers.unigram(path).read_text('utf-8')
  _importing.to_run(str(path), str(tmp_path / 'run'))
  out = exported(tmp_path / 'run', tmp_path / 'out')
  assert (out / 'tokenizer.json').read_text('utf-8') == text
  settings = json.loads((out / 'tokenizer_config.json').read_text())
  assert (settings['eos_token'], settings['pad_token']) == ('</s>', '<pad>')
  a, b = (_importing.load(str(p))[0].tokenizer for p in (path, out))
  assert a.fingerprint() == b.fingerprint() and a.extra == b.extra != ()


def test_tokenizer_json_comes_before_pieces(tmp_path):
  _tokenizers.unigram(tmp_path)
  trained(tmp_path / 'spiece.model')
  assert found(tmp_path).part == 'unigram'
  spec = json.loads((tmp_path / 'tokenizer.json').read_text())
  spec['added_tokens'].append(
    dict(spec['added_tokens'][-1], id=155, content='A new', special=False)
  )
  (tmp_path / 'tokenizer.json').write_text(json.dumps(spec))
  assert found(tmp_path).part == 'sentencepiece'  # where the first cannot be used


@pytest.mark.parametrize('file', ['tokenizer.json', 'tokenizer_config.json', 'added_tokens.json'])
def test_pieces_without_tokens_that_the_folder_adds_are_refused(tmp_path, file):
  """Chats that were tuned on a Llama end by such a token: it would never be written."""
  trained(tmp_path / 'tokenizer.model')
  entry = dict(content='<|im_end|>', special=True)
  texts = {
    'tokenizer.json': dict(
      model=dict(type='BPE', vocab={'a': 0}, merges=[], byte_fallback=True),
      pre_tokenizer=None,
      added_tokens=[entry | dict(id=400)],
    ),
    'tokenizer_config.json': dict(added_tokens_decoder={'400': entry}),
    'added_tokens.json': {'<|im_end|>': 400},
  }
  (tmp_path / file).write_text(json.dumps(texts[file]))
  assert found(tmp_path, vocab_size=400).part == 'sentencepiece'  # an id that the model lacks too
  with pytest.raises(ValueError, match=r'lacks tokens .*: <\|im_end\|> \(400\); --tokenizer='):
    found(tmp_path, vocab_size=402)


@pytest.mark.parametrize('given, refused', [(2, False), ([7, 2], False), (None, False), (7, True)])
def test_pieces_that_end_texts_otherwise_are_refused(tmp_path, given, refused):
  trained(tmp_path / 'tokenizer.model')
  assert found(tmp_path).made().eos == 2
  if not refused:
    assert found(tmp_path, eos_token_id=given).part == 'sentencepiece'
    return
  with pytest.raises(ValueError, match='eos_token_id=7 in config.json is not that of .*, 2'):
    found(tmp_path, eos_token_id=given)


@pytest.mark.parametrize('said, eos', [(None, 256), ('<|eot_id|>', 258), ('<|other|>', 256)])
def test_of_several_ends_the_settings_name_one(tmp_path, said, eos):
  """As Llama 3's: the end of a text, of a message and of a turn."""
  path, ends = tmp_path / 'in', [256, 257, 258]
  _tiny.folder(path, eos_token_id=ends)
  names = ('<|end_of_text|>', '<|eom_id|>', '<|eot_id|>')
  added = {t: (256 + i, True) for i, t in enumerate(names)}
  text = _tokenizer.file({c: b for b, c in enumerate(_bpe_files.alphabet())}, [], added)
  (path / 'tokenizer.json').write_text(json.dumps(text))
  settings = dict(eos_token=dict(content=said)) if said else {}
  (path / 'tokenizer_config.json').write_text(json.dumps(settings))
  _importing.to_run(str(path), str(tmp_path / 'run'))
  assert restore.load(tmp_path / 'run')[0].tokenizer.eos == eos
  out = exported(tmp_path / 'run', tmp_path / 'out')
  assert json.loads((out / 'config.json').read_text())['eos_token_id'] == ends


def test_a_bare_pair_of_files_is_gpt2s_alone(tmp_path):
  (tmp_path / 'vocab.json').write_text('{}')
  (tmp_path / 'merges.txt').write_text('')
  with pytest.raises(ValueError, match='no tokenizer.json.*for gpt2, vocab.json and merges.txt'):
    found(tmp_path, 'qwen2')
  assert found(tmp_path, 'gpt2').part == 'bpe'


@pytest.mark.parametrize('kind', ['RobertaProcessing', 'BertProcessing'])
def test_texts_begin_as_the_file_says(tmp_path, kind):
  spec = json.loads(bpe.Bpe.train(['to be or not to be ' * 9], 261))
  spec['post_processor'] = dict(type=kind, cls=['<|endoftext|>', 0], sep=['<|endoftext|>', 0])
  (tmp_path / 'tokenizer.json').write_text(json.dumps(spec))
  assert found(tmp_path, bos_token_id=0).bos
  assert not found(tmp_path).bos  # it is nobody's bos


@pytest.mark.parametrize('spec', ['extended(extra=3)', 'llama2c'])
def test_a_tokenizer_without_counterpart_is_refused(tmp_path, spec):
  spec = f'sentencepiece(path="{_tokenizers.llama2c(tmp_path)}")' if spec == 'llama2c' else spec
  run = str(tmp_path / 'run')
  _importing.to_run(str(folder(tmp_path / 'in')), run, tokenizer=spec)
  assert command.main(['export', run, f'--out={tmp_path / "a"}', '--tokenizer=none']) == 0
  with pytest.raises(ValueError, match='no counterpart; --tokenizer=none leaves it out'):
    exported(tmp_path / 'run', tmp_path / 'out')


# ------------------------------------------------------------------ refusals


def refused(capsys, path, *words, bound='run'):
  """One line at the end of the command, which names the file; nothing is written."""
  run = path.parent / bound
  assert command.main(['import', str(path), f'--out={run}']) == 2
  told = capsys.readouterr().err.strip()
  assert told.startswith('lmjax: ') and '\n' not in told and not run.exists()
  for word in (str(path), *words):
    assert word in told, told


JSON = {
  'truncated': (lambda s: None, 'not readable JSON'),
  'of an unknown kind': (lambda s: s['model'].update(type='WordLevel'), 'WordLevel'),
  'with a gap': (lambda s: s['added_tokens'][-1].update(id=900), 'without gaps'),
  'without a model': (lambda s: s.update(model=[1]), 'another file, or damaged'),
  'with other tokens': (lambda s: s.update(added_tokens=[3]), 'another file, or damaged'),
  'with one token': (lambda s: s.update(added_tokens={'id': 3}), 'another file, or damaged'),
  'with an odd normalizer': (lambda s: s.update(normalizer='NFC'), 'another file, or damaged'),
  'with odd steps': (
    lambda s: s.update(normalizer=dict(type='Sequence', normalizers=5)),
    'cannot be used',
  ),
  'with an odd step': (lambda s: s.update(pre_tokenizer=dict(pretokenizers=[3])), 'damaged'),
}


@pytest.mark.parametrize('what', JSON)
def test_a_wrong_tokenizer_json_is_refused(tmp_path, capsys, what):
  path = folder(tmp_path / 'in')
  text = _tokenizers.unigram(path).read_text('utf-8')
  spec = json.loads(text)
  change, words = JSON[what]
  change(spec)
  told = text[:-30] if what == 'truncated' else json.dumps(spec)
  (path / 'tokenizer.json').write_text(told, 'utf-8')
  refused(capsys, path, 'tokenizer.json', words)


@pytest.mark.parametrize(
  'post',
  [3, dict(processors=3), dict(processors=[3]), dict(single={}), dict(single=[3]), dict(cls={})],
)
def test_an_odd_template_is_none(tmp_path, post):
  spec = json.loads(_tokenizers.unigram(tmp_path).read_text())
  (tmp_path / 'tokenizer.json').write_text(json.dumps(spec | dict(post_processor=post)))
  assert not found(tmp_path, bos_token_id=0).bos


def test_a_vocabulary_larger_than_the_models_is_refused(tmp_path, capsys):
  path = _tiny.folder(tmp_path / 'in', vocab_size=100)
  _tokenizers.unigram(path)
  refused(capsys, path, 'ids up to 154, and the model knows 100')


@pytest.mark.parametrize('name', ['spiece.model', 'tokenizer.model'])
@pytest.mark.parametrize('data', [b'version https://git-lfs\n', b'', bytes(300)])
def test_text_in_place_of_pieces_is_refused(tmp_path, capsys, name, data):
  path = folder(tmp_path / 'in')
  (path / name).write_bytes(data)
  refused(capsys, path, name, 'not a SentencePiece .model')


@pytest.mark.parametrize(
  'lines, settings, told',
  [
    ([], None, 'vocab.txt is empty'),
    (['[UNK]', 'a', 'b', 'a'], None, "vocab.txt: 'a' stands in line 2 and in line 4"),
    (['a'], None, 'vocab.txt: it has no [UNK]'),
    (
      None,
      dict(tokenizer_class='BertJapaneseTokenizer'),
      "tokenizer_class='BertJapaneseTokenizer'",
    ),
    (None, dict(do_lower_case='no'), 'do_lower_case=no: True or False is expected'),
    (None, dict(do_lower_case=1), 'do_lower_case=1: True or False is expected'),
    (None, dict(never_split=['x']), "never_split=['x']"),
    (None, dict(do_basic_tokenize=False), 'do_basic_tokenize=False: True is expected'),
    (None, dict(cls_token=3), 'cls_token is 3'),
    (None, dict(extra_special_tokens=3), 'extra_special_tokens is 3'),
    (None, dict(additional_special_tokens=['<a>']), "the token '<a>' is not in vocab.txt"),
    (None, dict(added_tokens_decoder={'9': dict(content='<b>')}), "the token '<b>' is not in"),
  ],
)
def test_wrong_words_are_refused(tmp_path, lines, settings, told):
  path = words(tmp_path / 'in', settings, lines)
  with pytest.raises(ValueError) as e:
    found(path, 'bert')
  assert told in str(e.value) and str(path) in str(e.value) and '\n' not in str(e.value)


def test_words_of_other_models_are_not_taken_for_berts(tmp_path):
  with pytest.raises(
    ValueError, match='spiece.model .nor,.*for bert, vocab.txt.; --tokenizer=SPEC'
  ):
    found(words(tmp_path / 'in'), 'roberta')


@pytest.mark.parametrize(
  'name, data, told',
  [
    ('vocab.txt', b'\xff\xfe', 'is not UTF-8 text'),
    ('added_tokens.json', b'[', 'is not readable JSON'),
    ('added_tokens.json', b'{"new": 700}', "the token 'new'"),
    ('special_tokens_map.json', b'[]', 'holds a JSON list'),
  ],
)
def test_wrong_files_beside_words_are_refused(tmp_path, name, data, told):
  path = words(tmp_path / 'in')
  (path / name).write_bytes(data)
  with pytest.raises(ValueError, match=told):
    found(path, 'bert')
