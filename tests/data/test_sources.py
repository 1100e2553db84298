"""What single sources promise beyond the contract, and bad input: one sentence that names the
file.
"""

import gzip
import json
import lzma
import pathlib

import numpy as np
import pytest

from lmjax import registry
from lmjax.data import store


def read(spec):
  return list(registry.make('source', spec)())


def fails(spec, *words):
  with pytest.raises(ValueError) as e:
    part = registry.make('source', spec)()
    part.store() if hasattr(part, 'store') else list(part)
  for word in words:
    assert str(word) in str(e.value), str(e.value)
  assert '\n' not in str(e.value)


@pytest.mark.parametrize('name', ['text', 'jsonl', 'tokens', 'arrayrecord', 'hf'])
def test_missing_and_empty_files(tmp_path, name):
  missing, empty = tmp_path / 'none.npy', tmp_path / 'empty.npy'
  if name == 'hf':
    pytest.importorskip('datasets')
  empty.touch()
  fails(f'{name}(path={str(missing)!r})', missing, 'no such file')
  fails(f'{name}(path={str(empty)!r})', empty, 'is empty')
  fails(f'{name}(path="")', "path=''")


@pytest.mark.parametrize('name', ['text', 'jsonl', 'arrayrecord'])
def test_empty_folder(tmp_path, name):
  fails(f'{name}(path={str(tmp_path)!r})', tmp_path, 'has no files')
  fails(f'{name}(path=())', 'at least one file')


def test_text_folder_pattern_tuple(tmp_path):
  for n in ('b', 'a', 'sub/c'):
    (tmp_path / n).parent.mkdir(exist_ok=True)
    (tmp_path / f'{n}.txt').write_text(n)
  (tmp_path / 'notes.csv').write_text('no')
  assert read(f'text(path={str(tmp_path)!r})') == ['a', 'b']
  assert read(f'text(path={str(tmp_path / "**/*.txt")!r})') == ['a', 'b', 'sub/c']
  both = f'({str(tmp_path / "b.txt")!r}, {str(tmp_path / "a.txt")!r})'
  assert read(f'text(path={both})') == ['b', 'a'], 'in the order given'


def test_variables_in_paths(tmp_path, monkeypatch):
  monkeypatch.setenv('LMJAX_DATA', str(tmp_path))
  (tmp_path / 'a.txt').write_text('a')
  assert read('text(path="$LMJAX_DATA/a.txt")') == ['a']
  monkeypatch.delenv('LMJAX_DATA')
  fails('text(path="$LMJAX_DATA/a.txt")', '$LMJAX_DATA/a.txt', 'no such file')


def test_text_encodings(tmp_path):
  file = tmp_path / 'x.txt'
  file.write_bytes('caf\u00e9'.encode('latin-1'))
  fails(f'text(path={str(file)!r})', file, 'is not utf-8 text: byte 0xe9 at offset 3')
  assert read(f'text(path={str(file)!r}, encoding="latin-1")') == ['caf\u00e9']
  assert read(f'text(path={str(file)!r}, encoding=None)') == [b'caf\xe9']
  assert read(f'text(path={str(file)!r}, encoding=None, separator="f")') == [b'ca', b'\xe9']
  fails(f'text(path={str(file)!r}, encoding="utf-99")', "encoding='utf-99' is not known")
  fails(f'text(path={str(file)!r}, separator="")', "separator=''")


@pytest.mark.parametrize('suffix', ['.gz', '.xz', '.zst'])
def test_cut_compressed_files(tmp_path, suffix):
  """A cut file must not pass for a shorter one."""
  data = json.dumps(dict(text=np.random.default_rng(0).bytes(300_000).hex())).encode() + b'\n'
  if suffix == '.zst':
    packed = pytest.importorskip('zstandard').ZstdCompressor().compress(data)
  else:
    packed = {'.gz': gzip.compress, '.xz': lzma.compress}[suffix](data)
  for name in ('jsonl', 'text'):
    file = tmp_path / f'x.{name}{suffix}'
    file.write_bytes(packed[:-1000])
    fails(f'{name}(path={str(file)!r})', file, 'is damaged')
    file.write_bytes(b'this is no archive at all')
    fails(f'{name}(path={str(file)!r})', file, 'is damaged')


def test_jsonl_errors_name_file_and_line(tmp_path):
  file = tmp_path / 'x.jsonl'
  for line, words in [
    (b'{"text": ', 'not JSON'),
    (b'[1]', 'a JSON object'),
    (b'{"txet": "a"}', "did you mean 'txet'"),
    (b'{"text": 3}', 'holds int'),
    (b'{"text": "\xe9"}', 'not UTF-8 text: byte 0xe9'),
    (b'{"text": "\\ud800"}', 'lone surrogate'),
    (b'[' * 100_000, 'not JSON'),
  ]:
    file.write_bytes(b'{"text": "fine"}\n\n' + line + b'\n')
    fails(f'jsonl(path={str(file)!r})', f'{file}, line 3', words)


def test_jsonl_where_and_field(tmp_path):
  file = tmp_path / 'x.jsonl'
  file.write_text(
    '\n'.join(json.dumps(dict(body=str(i), lang='en' if i % 2 else 'de')) for i in range(5))
  )
  assert read(f'jsonl(path={str(file)!r}, field="body", where=("lang", "en"))') == ['1', '3']
  fails(f'jsonl(path={str(file)!r}, where=("lang",))', 'where=')


def test_tokens_npy_and_bin_in_place(tmp_path):
  ids = np.array([1, 2, 0, 3, 0, 4], np.uint16)
  np.save(tmp_path / 'x.npy', ids)
  ids.tofile(tmp_path / 'x.bin')
  for spec in (
    f'tokens(path={str(tmp_path / "x.npy")!r}',
    f'tokens(path={str(tmp_path / "x.bin")!r}, dtype="uint16"',
  ):
    whole = registry.make('source', spec + ')')().store()
    assert isinstance(whole.tokens, np.memmap), 'read where it lies'
    assert [whole[i].tolist() for i in range(len(whole))] == [ids.tolist()]
    assert [d.tolist() for d in read(spec + ', eos=0)')] == [[1, 2, 0], [3, 0], [4]]
    assert [d.tolist() for d in read(spec + ', eos=4)')] == [ids.tolist()], (
      'nothing follows a last eos'
    )
    assert registry.make('source', spec + ', eos=0)')().fingerprint() != whole.fingerprint()


def test_tokens_bad_input(tmp_path):
  def file(name, data):
    path = tmp_path / name
    data(path) if callable(data) else path.write_bytes(data)
    return str(path)

  odd = file('odd.bin', b'12345')
  fails(f'tokens(path={odd!r})', odd, 'dtype="uint16"')
  fails(f'tokens(path={odd!r}, dtype="uint16")', odd, 'has 5 bytes, not a multiple of 2')
  fails(f'tokens(path={odd!r}, dtype="float32")', "dtype='float32'")
  real = file('f.npy', lambda p: np.save(p, np.ones(3)))
  fails(f'tokens(path={real!r})', real, 'whole numbers, not float64')
  square = file('s.npy', lambda p: np.save(p, np.ones((2, 2), int)))
  fails(f'tokens(path={square!r})', square, 'a flat array')
  fails(f'tokens(path={square!r}, dtype="uint16")', square, 'remove dtype')
  objects = file('o.npy', lambda p: np.save(p, np.array([dict()]), allow_pickle=True))
  fails(f'tokens(path={objects!r})', objects)
  cut = file('c.npy', pathlib.Path(real).read_bytes()[:-5])
  fails(f'tokens(path={cut!r})', cut)
  archive = file('a.npz', lambda p: np.savez(p, tokens=np.arange(3)))
  fails(f'tokens(path={archive!r})', archive, 'it has tokens; ids and offsets are expected')
  file('b.npz', pathlib.Path(archive).read_bytes()[:-30])
  fails(f'tokens(path={str(tmp_path / "b.npz")!r})', 'b.npz')
  wrong = file('w.npz', lambda p: np.savez(p, ids=np.arange(3), offsets=[0, 4]))
  fails(f'tokens(path={wrong!r})', wrong, 'offsets must rise from 0')
  fails(f'tokens(path={str(tmp_path / "*.npy")!r})', 'files; one is expected')
  fails(f'tokens(path={str(tmp_path)!r})', 'not a token store')
  text = file('x.txt', b'hello')
  fails(f'tokens(path={text!r})', text, 'a folder, .npy, .npz or .bin')


def test_tokens_outside_the_vocabulary(tmp_path):
  np.save(tmp_path / 'x.npy', np.array([1, 260]))
  tok = registry.make('tokenizer', 'bytes()')()
  with pytest.raises(ValueError, match=r'x.npy: id 260 is not in the vocabulary; 0 ... 259'):
    store.stored(
      registry.make('source', f'tokens(path={str(tmp_path / "x.npy")!r})'), tok, tmp_path
    )


def test_tokens_of_the_real_tinystories(test_data):
  path = test_data / 'lm/tinystories/train_llama2_32k_ids.npz'
  got = registry.make('source', f'tokens(path={str(path)!r})')().store()
  assert len(got) == 1720 and len(got.tokens) == 403_709
  assert all(got[i][0] == 1 for i in range(len(got))), 'each story begins with BOS'


def test_array_record_damage(tmp_path):
  file = tmp_path / 'x.array_record'
  file.write_bytes(b'not an array record' * 100)
  fails(f'arrayrecord(path={str(file)!r})', file, 'cannot be read as ArrayRecord')


def test_array_record_bad_text(tmp_path):
  from array_record.python import array_record_module

  file = tmp_path / 'x.array_record'
  out = array_record_module.ArrayRecordWriter(str(file), 'group_size:1')
  out.write(b'fine')
  out.write(b'\xff')
  out.close()
  fails(f'arrayrecord(path={str(file)!r})', f'{file}, record 1', 'not utf-8')
  fails(f'arrayrecord(path={str(file)!r}, field="text")', f'{file}, record 0', 'not JSON')


def test_hf_splits(tmp_path):
  datasets = pytest.importorskip('datasets')
  part = datasets.Dataset.from_dict(dict(text=['a'], other=['b']))
  datasets.DatasetDict(train=part, test=part).save_to_disk(str(tmp_path / 'd'))
  part.save_to_disk(str(tmp_path / 'single'))
  path, single = str(tmp_path / 'd'), str(tmp_path / 'single')
  assert read(f'hf(path={path!r}, split="test", field="other")') == ['b']
  fails(f'hf(path={path!r})', path, "'train', 'test'")
  fails(f'hf(path={path!r}, split="test", field="body")', 'row 0', "no field 'body'")
  fails(f'hf(path={single!r}, split="test")', 'has no splits')
  (tmp_path / 'x.txt').write_text('a')
  fails(f'hf(path={str(tmp_path / "x.txt")!r})', 'files of one kind')


def test_seqio_missing_is_one_sentence(monkeypatch):
  import sys

  monkeypatch.setitem(sys.modules, 'seqio', None)
  fails('seqio_task(task="x")', "pip install 'lmjax[seqio]'")


def test_seqio_bad_names():
  pytest.importorskip('seqio', reason='seqio is in the extra lmjax[seqio]')
  fails('seqio_task(task="nothing_like_it")', "task='nothing_like_it' is not registered")
  fails(
    'seqio_task(task="x", module="no.such.module")', "module='no.such.module' cannot be imported"
  )
