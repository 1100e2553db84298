"""python -m lmjax.tokenize: train, encode, decode, and one sentence for wrong input."""

import io
import lzma
import os
import pathlib
import random
import subprocess
import sys

import pytest

from lmjax import registry
from lmjax import tokenize
from lmjax.tokenizers import _files

_DRAW = random.Random(0)
_SYLLABLES = ('ka', 'lo', 'mi', 'ter', 'sun', 'ing', 'é', 'the')
_WORDS = [''.join(_DRAW.choices(_SYLLABLES, k=_DRAW.randint(1, 4))) for _ in range(400)]
TEXT = ''.join(f'The cat {" ".join(_DRAW.choices(_WORDS, k=8))}, naïve.\n\n' for _ in range(200))


@pytest.fixture
def run(capfd):
  def call(*argv):
    status = tokenize.main([str(a) for a in argv])
    out, err = capfd.readouterr()
    return status, out.strip(), err.strip()

  return call


@pytest.fixture
def corpus(tmp_path):
  a, b = tmp_path / 'a.txt', tmp_path / 'b.txt.xz'
  a.write_text(TEXT[:5000], encoding='utf8')
  b.write_bytes(lzma.compress(TEXT[5000:].encode()))
  return [a, b]


def test_train_bpe_then_encode_and_decode(run, corpus, tmp_path):
  out = tmp_path / 'tok.json'
  status, said, _ = run('train', 'bpe', '--files', *corpus, '--vocab-size', 300, '--out', out)
  assert status == 0 and f'{len(TEXT):,} characters' in said and '300 entries' in said
  spec = f'bpe(path="{out}")'
  status, ids, _ = run('encode', f'--tokenizer={spec}', 'The cat\n')
  want = registry.make('tokenizer', spec)().encode('The cat\n').tolist()
  assert status == 0 and [int(i) for i in ids.split()] == want
  assert run('decode', f'--tokenizer={spec}', *ids.split()) == (0, 'The cat', '')
  assert not list(tmp_path.glob('*.partial'))


@pytest.mark.parametrize('model_type', ['unigram', 'bpe'])
def test_train_sentencepiece(run, corpus, tmp_path, model_type):
  out = tmp_path / 'sp.model'
  status, _, err = run(
    'train',
    'sentencepiece',
    '--model-type',
    model_type,
    '--files',
    *corpus,
    '--vocab-size',
    300,
    '--out',
    out,
  )
  assert status == 0, err
  train = registry.get('tokenizer', 'sentencepiece').obj.train
  made = train([TEXT[:5000], TEXT[5000:]], 300, model_type=model_type)
  assert out.read_bytes() == made
  spec = f'--tokenizer=sentencepiece(path="{out}")'
  status, ids, _ = run('encode', spec, 'The cat')
  assert status == 0 and run('decode', spec, *ids.split())[1] == 'The cat'


def test_options_are_passed_on(run, corpus, tmp_path):
  status, _, err = run(
    'train',
    'bpe',
    '--files',
    *corpus,
    '--vocab-size',
    300,
    '--out',
    tmp_path / 'o',
    '--min-frequency',
    10**6,
  )
  assert status == 2 and 'gives only 257 entries with pairs seen 1000000 times' in err


def test_any_number_of_cores_gives_the_same_file(tmp_path, corpus):
  made = []
  for threads in ('1', '4'):
    out = tmp_path / f'{threads}.json'
    subprocess.run(
      [
        sys.executable,
        '-m',
        'lmjax.tokenize',
        'train',
        'bpe',
        '--files',
        *map(str, corpus),
        '--vocab-size',
        '350',
        '--out',
        out,
      ],
      check=True,
      env=os.environ | {'RAYON_NUM_THREADS': threads},
      cwd=pathlib.Path(__file__).parents[1],
    )
    made.append(out.read_bytes())
  assert made[0] == made[1]


def test_standard_input_may_be_any_bytes(run, monkeypatch):
  monkeypatch.setattr(sys, 'stdin', io.TextIOWrapper(io.BytesIO(b'a\xff')))
  assert run('encode', '--tokenizer=bytes()', '-') == (0, '97 255', '')


def test_wrong_input_is_one_sentence(run, corpus, tmp_path):
  out, bad = tmp_path / 'tok.json', tmp_path / 'bad.txt'
  bad.write_bytes(b'a' * (1 << 20) + b'bc\xff')
  train = ('train', 'bpe', '--vocab-size', 300, '--out', out, '--files')
  cases = (
    ((*train, corpus[0], tmp_path / 'none.txt'), f'no file {tmp_path / "none.txt"}'),
    ((*train, bad), f'{bad} is not UTF-8 text: byte {(1 << 20) + 2} is 0xff'),
    (('train', 'bpe', '--vocab-size', 3, '--out', out, '--files', *corpus), 'vocab_size=3'),
    (
      ('train', 'bpe', '--vocab-size', 300, '--out', tmp_path / 'no' / 'x', '--files', *corpus),
      'there is no folder',
    ),
    (('encode', '--tokenizer=bpe(paht="x")', 'text'), "did you mean 'path'"),
    (('encode', f'--tokenizer=bpe(path="{out}")', 'text'), f'no file {out}'),
    (('decode', '--tokenizer=bytes()', 260), 'id 260 is not in the vocabulary'),
  )
  for argv, words in cases:
    status, _, err = run(*argv)
    assert status == 2 and words in err and '\n' not in err, (argv, err)
  assert not out.exists()


def test_out_is_never_overwritten(run, corpus, tmp_path):
  out = tmp_path / 'tok.json'
  out.write_text('precious')
  status, _, err = run('train', 'bpe', '--files', *corpus, '--vocab-size', 300, '--out', out)
  assert status == 2 and f'--out={out} exists' in err and out.read_text() == 'precious'


def test_only_trainable_tokenizers_can_be_trained(run, capfd):
  with pytest.raises(SystemExit):
    tokenize.main(['train', 'bytes'])
  assert 'bpe' in capfd.readouterr().err


@pytest.mark.parametrize('block', [1, 2, 7, 100, 1 << 20])
def test_texts_are_the_files_and_their_cuts_do_not_matter(tmp_path, monkeypatch, block):
  text = 'é\n\n\nb c\n d\r\n\r\n北京\n\n' * 20 + 'end\n'
  (tmp_path / 'a.txt').write_bytes(text.encode())
  monkeypatch.setattr(_files, '_BLOCK', block)
  pieces = list(_files.texts([tmp_path / 'a.txt', tmp_path / 'a.txt']))
  assert ''.join(pieces) == text * 2
  for a, b in zip(pieces, pieces[1:]):
    assert b.startswith('\n') and a[-1].strip() or b.startswith('é')  # a cut, or the next file
  train = registry.get('tokenizer', 'bpe').obj.train
  assert train(pieces, 262) == train([text, text], 262)
