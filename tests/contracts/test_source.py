"""The contract of every source, on tiny made-up files: documents in order, the same each time, a
fingerprint of contents.
"""

import bz2
import gzip
import json
import lzma
import shutil
import sys

import numpy as np
import pytest

import _rows
from lmjax import registry
from lmjax import specs
from lmjax.data import store
from lmjax.data import writer

TEXTS = ['To be, or not to be', '', 'that is the question: caf\u00e9 \U0001f600\r\n', 'x' * 5000]
IDS = [[5, 6, 7], [], [8], list(range(200))]


def compress(data: bytes, suffix: str) -> bytes:
  if suffix == '.zst':
    zstandard = pytest.importorskip('zstandard')
    half = len(data) // 2  # two frames: both must be read
    return b''.join(zstandard.ZstdCompressor().compress(d) for d in (data[:half], data[half:]))
  return {'': bytes, '.gz': gzip.compress, '.xz': lzma.compress, '.bz2': bz2.compress}[suffix](data)


def json_lines(texts) -> bytes:
  return '\n'.join(json.dumps(dict(text=t, n=i)) for i, t in enumerate(texts)).encode()


def write_jsonl(folder, texts, suffix=''):
  file = folder / f'x.jsonl{suffix}'
  file.write_bytes(compress(json_lines(texts), suffix))
  return f'jsonl(path={str(file)!r})'


def write_text(folder, texts, suffix=''):
  file = folder / f'x.txt{suffix}'
  file.write_bytes(compress('<|end|>'.join(texts).encode(), suffix))
  return f'text(path={str(file)!r}, separator="<|end|>")'


def write_files(folder, texts):
  for i, text in enumerate(texts):
    (folder / f'{i}.txt').write_bytes((text or ' ').encode())
  return f'text(path={str(folder / "*.txt")!r})'


def write_array_record(folder, texts, field=None):
  from array_record.python import array_record_module

  out = array_record_module.ArrayRecordWriter(str(folder / 'x.array_record'), 'group_size:1')
  for text in texts:
    out.write((json.dumps({field: text}) if field else text).encode())
  out.close()
  more = f', field={field!r}' if field else ''
  return f'arrayrecord(path={str(folder / "x.array_record")!r}{more})'


def write_saved(folder, texts):
  datasets = pytest.importorskip('datasets')
  part = datasets.Dataset.from_dict(dict(text=texts))
  datasets.DatasetDict(train=part, other=part.select([0])).save_to_disk(str(folder / 'saved'))
  return f'hf(path={str(folder / "saved")!r}, split="train")'


def write_parquet(folder, texts):
  datasets = pytest.importorskip('datasets')
  datasets.Dataset.from_dict(dict(text=texts)).to_parquet(str(folder / 'x.parquet'))
  return f'hf(path={str(folder / "x.parquet")!r})'


def write_store(folder, docs):
  with writer.StoreWriter(folder / 'store', vocab_size=260) as out:
    out.append(np.concatenate(docs), [len(d) for d in docs])
  return f'tokens(path={str(folder / "store")!r})'


def write_npz(folder, docs):
  np.savez(
    folder / 'x.npz',
    ids=np.concatenate(docs).astype(np.uint16),
    offsets=np.cumsum([0, *map(len, docs)]),
  )
  return f'tokens(path={str(folder / "x.npz")!r})'


def write_seqio(folder, docs):
  pytest.importorskip('seqio', reason='seqio is in the extra lmjax[seqio]')
  name = f'made_up_{abs(hash(str(folder)))}_{abs(hash(str(docs)))}'
  (folder / f'{name}.py').write_text(f"""
import seqio
import tensorflow as tf

DOCS = {[list(map(int, d)) for d in docs]!r}

def make(split, shuffle_files=False, seed=None):
  ragged = tf.ragged.constant(DOCS, dtype=tf.int32)
  found = tf.data.Dataset.from_tensor_slices(ragged)
  return found.map(lambda ids: dict(targets=tf.convert_to_tensor(ids)))

seqio.TaskRegistry.add(
    {name!r}, source=seqio.FunctionDataSource(make, splits=['train']), preprocessors=[],
    output_features=dict(targets=seqio.Feature(seqio.PassThroughVocabulary(260), add_eos=False)))
""")
  if str(folder) not in sys.path:
    sys.path.insert(0, str(folder))
  return f'seqio_task(task={name!r}, module={name!r})'


# name -> (how to write a file of documents and the spec that reads it, the documents); every
# registered source must be here.
EXAMPLES = {
  'text': [
    (write_text, TEXTS),
    (write_files, [t or ' ' for t in TEXTS]),
    *[((lambda f, t, s=s: write_text(f, t, s)), TEXTS) for s in ('.gz', '.xz', '.bz2', '.zst')],
  ],
  'jsonl': [
    (write_jsonl, TEXTS),
    *[((lambda f, t, s=s: write_jsonl(f, t, s)), TEXTS) for s in ('.gz', '.xz', '.zst')],
  ],
  'arrayrecord': [
    (write_array_record, TEXTS),
    (lambda f, t: write_array_record(f, t, 'body'), TEXTS),
  ],
  'hf': [(write_saved, TEXTS), (write_parquet, TEXTS)],
  'tokens': [(write_store, IDS), (write_npz, IDS)],
  'seqio_task': [(write_seqio, IDS)],
  'shakespeare': [],  # bundled; see below
  'mqar': [],  # made up; see tests/data/test_mqar.py
}
for new, how in _rows.values('source', 'write').items():
  EXAMPLES[new] = [(how, _rows.values('source', 'DOCUMENTS')[new])]
CASES = [(name, i) for name, rows in EXAMPLES.items() for i in range(len(rows))]


def plain(documents):
  return [d if isinstance(d, (str, bytes)) else np.asarray(d).tolist() for d in documents]


def source(spec):
  return registry.make('source', spec)()


def test_every_source_is_tried():
  assert set(EXAMPLES) == _rows.names('source')


@pytest.mark.parametrize('name, i', CASES)
def test_contract(name, i, tmp_path):
  write, documents = EXAMPLES[name][i]
  spec = write(tmp_path, documents)
  assert specs.call(spec).name == name
  part = registry.make('source', spec)
  got = part()
  assert plain(got) == documents, 'all documents, in order'
  assert plain(got) == documents, 'and again'
  assert all(isinstance(d, (str, bytes)) != part.fact('tokens') for d in got)
  assert got.fingerprint() == source(spec).fingerprint()


@pytest.mark.parametrize('name, i', CASES)
def test_fingerprint_is_of_contents_not_of_paths(name, i, tmp_path):
  write, documents = EXAMPLES[name][i]
  other = [*documents[:-1], type(documents[-1])(documents[-1][:-1])]
  folders = [tmp_path / n for n in 'abc']
  for folder in folders:
    folder.mkdir()
  first, changed = (
    source(write(f, d)).fingerprint() for f, d in zip(folders[1:], (documents, other))
  )
  assert first != changed
  if name in (
    'seqio_task',
    'hf',
  ):  # seqio: a task has a name; datasets writes a random fingerprint into its own files
    return
  shutil.rmtree(folders[0])
  shutil.copytree(folders[1], folders[0])
  assert source(write_spec(write, folders[1], folders[0], documents)).fingerprint() == first


def write_spec(write, old, new, documents):
  """The spec that reads the copy."""
  shutil.rmtree(old)
  old.mkdir()
  return write(old, documents).replace(str(old), str(new))


@pytest.mark.parametrize('name, i', CASES)
def test_stored(name, i, tmp_path):
  """Through the store: ids of the documents, in use for training."""
  write, documents = EXAMPLES[name][i]
  spec = write(tmp_path, documents)
  tok = registry.make('tokenizer', 'bytes()')()
  got = store.stored(registry.make('source', spec), tok, tmp_path / 'cache')
  want = [list(d.encode()) + [tok.eos] * bool(d) if isinstance(d, str) else d for d in documents]
  assert [got[k].tolist() for k in range(len(got))] == want


def test_shakespeare():
  parts = {s: source(f'shakespeare(split="{s}")') for s in ('train', 'valid', 'all')}
  text = {s: ''.join(p) for s, p in parts.items()}
  assert len(text['all']) == 1_115_394 and len(set(text['all'])) == 65
  assert len(text['train']) == 1_003_854, "nanoGPT's split"
  assert text['train'] + text['valid'] == text['all'] and text['all'].startswith('First Citizen:\n')
  assert len({p.fingerprint() for p in parts.values()}) == 3
  assert len(''.join(source('shakespeare(split="valid", valid_fraction=0.5)'))) == 557_697
  for bad in (
    'shakespeare(split="test")',
    'shakespeare(valid_fraction=1.0)',
    'shakespeare(valid_fraction=0)',
  ):
    with pytest.raises(specs.SpecError):
      registry.make('source', bad)


def test_shakespeare_is_the_public_file(test_data):
  with lzma.open(
    test_data / 'lm/tinyshakespeare/input.txt.xz', 'rt', encoding='utf-8', newline=''
  ) as f:
    assert f.read() == ''.join(source('shakespeare(split="all")'))
