"""`python -m lmjax.data.prepare`: the same bytes for any number of workers, and nothing
overwritten.
"""

import json
import random

import pytest

from lmjax import registry
from lmjax.data import prepare
from lmjax.data import store


@pytest.fixture
def source(tmp_path):
  rng = random.Random(0)
  texts = [''.join(rng.choices('abc \u00e9\n', k=rng.choice([0, 3, 50, 900]))) for _ in range(3000)]
  (tmp_path / 'x.jsonl').write_text('\n'.join(json.dumps(dict(text=t)) for t in texts))
  return f'jsonl(path={str(tmp_path / "x.jsonl")!r})', texts


def test_workers_do_not_change_the_result(tmp_path, source, capsys):
  spec, texts = source
  for workers in (1, 2):
    args = [
      f'--source={spec}',
      '--tokenizer=bytes()',
      f'--out={tmp_path / str(workers)}',
      f'--workers={workers}',
    ]
    assert prepare.main(args) == 0
    assert '3,000 documents' in capsys.readouterr().out
  for name in ('tokens.bin', 'offsets.npy', 'meta.json'):
    assert (tmp_path / '1' / name).read_bytes() == (tmp_path / '2' / name).read_bytes(), name
  tok = registry.make('tokenizer', 'bytes()')()
  got = registry.make('source', f'tokens(path={str(tmp_path / "2")!r})')().store()
  assert [tok.decode(got[i]) for i in range(len(got))] == texts
  assert all(len(got[i]) == 0 or got[i][-1] == tok.eos for i in range(len(got)))
  assert got.bytes == sum(len(t.encode()) for t in texts)


def test_same_tokens_as_on_the_fly(tmp_path, source):
  tok = registry.make('tokenizer', 'bytes()')()
  fly = store.stored(
    registry.make('source', source[0]), tok, tmp_path / 'cache', bos=True, eos=False
  )
  ahead = prepare.prepare(source[0], 'bytes()', tmp_path / 'out', bos=True, eos=False)
  assert fly.fingerprint() == ahead.fingerprint()


def test_bad_input(tmp_path, source, capsys):
  spec, _ = source

  def fails(words, **changes):
    args = dict(source=spec, tokenizer='bytes()', out=tmp_path / 'out', workers=1) | changes
    assert prepare.main([f'--{k}={v}' for k, v in args.items()]) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ') and words in error and error.count('\n') == 1, error
    assert 'out' not in [p.name for p in tmp_path.iterdir() if p.is_dir() and not any(p.iterdir())]

  fails('workers=0', workers=0)
  fails('no source named', source='jsonI(path="x")')
  fails('no such file', source='text(path="/nowhere/x.txt")')
  (tmp_path / 'bad.jsonl').write_text('{"text": "a"}\n{"text": \n')
  for workers in (1, 2):
    fails(
      'bad.jsonl, line 2', source=f'jsonl(path={str(tmp_path / "bad.jsonl")!r})', workers=workers
    )
  (tmp_path / 'out').mkdir()
  (tmp_path / 'out' / 'precious').write_text('x')
  fails('exists', source=spec)
  assert (tmp_path / 'out' / 'precious').read_text() == 'x'
  fails('holds ids already', source=f'tokens(path={str(tmp_path)!r})')
  assert sorted(p.name for p in tmp_path.iterdir()) == ['bad.jsonl', 'out', 'x.jsonl'], (
    'no partial stores stay'
  )


def test_help_has_examples(capsys):
  with pytest.raises(SystemExit):
    prepare.main(['--help'])
  assert 'jsonl(path=' in capsys.readouterr().out
