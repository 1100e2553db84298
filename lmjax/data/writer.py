"""Writing token stores: documents in, a complete directory out."""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
import time

import numpy as np

from lmjax import progress as progress_lib
from lmjax.data import store as store_lib
from lmjax.data.sources import _files

_CHUNK_DOCUMENTS = 256
_CHUNK_TEXT = 1 << 20  # characters


class StoreWriter:
  """Appends documents to a store that appears under `path` when the `with` block ends without an
  error.

  ids must lie in 0 ... vocab_size - 1. Nothing that exists is overwritten: ValueError when `path`
  exists, at the start and again at the end, when what was written is dropped in favour of what
  another process has put there.
  """

  def __init__(self, path, *, vocab_size: int, **meta):
    """Args: meta: JSON values kept in meta.json, e.g. tokenizer=fingerprint, bos=False,
    eos=True.
    """
    self.path, self.meta, self.vocab_size = pathlib.Path(path), meta, vocab_size
    self.dtype = store_lib.DTYPES['uint16' if vocab_size <= 1 << 16 else 'uint32']
    self.documents = self.tokens = self.bytes = self.words = 0
    self._max, self._lengths, self._digest = -1, [], hashlib.sha256()

  def __enter__(self):
    if self.path.exists():
      raise ValueError(f'{self.path} exists; nothing is overwritten, name a new folder')
    try:
      self.path.parent.mkdir(parents=True, exist_ok=True)
      self._folder = pathlib.Path(
        tempfile.mkdtemp(prefix=self.path.name + '.part-', dir=self.path.parent)
      )
    except OSError as e:
      raise ValueError(f'cannot write tokens to {self.path}: {e.strerror}') from None
    self._file = open(self._folder / 'tokens.bin', 'wb')
    return self

  def append(self, ids, lengths, *, bytes: int | None = None, words: int | None = None):
    """Adds documents: their ids one after another, and how many belong to each.

    Args: bytes, words: of the original text of all of them, or None where unknown (then the total
      is unknown).
    """
    ids, lengths = np.asarray(ids), np.asarray(lengths, np.int64)
    assert int(lengths.sum()) == len(ids), (lengths.sum(), len(ids))
    if len(ids):
      low, top = int(ids.min()), int(ids.max())
      if low < 0 or top >= self.vocab_size:
        raise ValueError(
          f'id {low if low < 0 else top} in documents {self.documents} ... '
          f'{self.documents + len(lengths) - 1} is not in the vocabulary; '
          f'0 ... {self.vocab_size - 1} is expected'
        )
      self._max = max(self._max, top)
      data = np.ascontiguousarray(ids, self.dtype)
      self._digest.update(data.data)
      with self._writing():
        self._file.write(data.data)
    self._lengths.append(lengths)
    self.documents += len(lengths)
    self.tokens += len(ids)
    self.bytes = None if bytes is None or self.bytes is None else self.bytes + bytes
    self.words = None if words is None or self.words is None else self.words + words

  def __exit__(self, kind, *_):
    try:
      with self._writing() if kind is None else contextlib.suppress(OSError):
        self._file.close()
      if kind is None:
        with self._writing():
          self._finish()
    finally:
      shutil.rmtree(self._folder, ignore_errors=True)  # renamed away on success

  @contextlib.contextmanager
  def _writing(self):
    try:
      yield
    except OSError as e:
      raise ValueError(f'{self.path} cannot be written: {e.strerror or e}') from None

  def _finish(self):
    lengths = np.concatenate(self._lengths) if self._lengths else np.zeros(0, np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype('<i8')
    np.save(self._folder / 'offsets.npy', offsets, allow_pickle=False)
    digest, name = self._digest.hexdigest(), self.dtype.name
    meta = dict(
      format=store_lib.FORMAT,
      dtype=name,
      documents=self.documents,
      tokens=self.tokens,
      bytes=self.bytes,
      words=self.words,
      max_id=self._max,
      vocab_size=self.vocab_size,
      tokens_sha256=digest,
      tokens_bin_bytes=(self._folder / 'tokens.bin').stat().st_size,
      offsets_npy_bytes=(self._folder / 'offsets.npy').stat().st_size,
      fingerprint=store_lib.combine(name, digest, store_lib.sha256(offsets)),
      **self.meta,
    )
    (self._folder / 'meta.json').write_text(
      json.dumps(meta, indent=1, sort_keys=True) + '\n', encoding='utf-8'
    )
    os.chmod(self._folder, 0o755)  # mkdtemp makes it private
    if self.path.exists():
      raise ValueError(f'{self.path} appeared while tokens were written; nothing is overwritten')
    self._folder.rename(self.path)


def encode(documents, tokenizer, *, bos: bool, eos: bool):
  """Tokenizes a list of documents (str, bytes or id arrays).

  Returns:
    (ids, lengths, bytes, words): ids one after another, bytes and words None for id arrays. An
    empty document stays empty.
  """
  before = [tokenizer.bos] if bos and tokenizer.bos is not None else []
  after = [tokenizer.eos] if eos and tokenizer.eos is not None else []
  out, lengths, size, words = [], [], 0, 0
  for text in documents:
    if not isinstance(text, (str, bytes)):
      out.append(np.asarray(text))
      size = words = None
    elif text:
      size += len(text.encode('utf-8')) if isinstance(text, str) else len(text)
      words += len(text.split())
      ids = np.asarray(tokenizer.encode(text))
      out.append(np.concatenate([before, ids, after]).astype(np.int64) if before or after else ids)
    else:
      out.append(np.zeros(0, np.int64))
    lengths.append(len(out[-1]))
  return (
    (np.concatenate(out) if out else np.zeros(0, np.int64)),
    np.array(lengths, np.int64),
    size,
    words,
  )


def chunks(source):
  """Lists of documents of bounded size, so that long texts flow through in little memory."""
  batch, size = [], 0
  for document in source:
    batch.append(document)
    size += len(document)
    if size >= _CHUNK_TEXT or len(batch) >= _CHUNK_DOCUMENTS:
      yield batch
      batch, size = [], 0
  if batch:
    yield batch


def cached(
  source, tokenizer, cache_dir: pathlib.Path, *, bos: bool, eos: bool, progress: bool
) -> store_lib.TokenStore:
  """The store of a source in cache_dir, written now if it is not there."""
  made = dict(
    source=source.fingerprint(),
    tokenizer=tokenizer.fingerprint(),
    bos=bos and tokenizer.bos is not None,
    eos=eos and tokenizer.eos is not None,
  )
  path = cache_dir / store_lib.combine(store_lib.FORMAT, *made.values())[:24]
  if not path.exists():
    try:
      with (
        StoreWriter(path, vocab_size=tokenizer.vocab_size, **made) as out,
        Watch(source, str(source), progress) as watch,
      ):
        for batch in chunks(source):
          ids, lengths, size, words = encode(batch, tokenizer, bos=bos, eos=eos)
          out.append(ids, lengths, bytes=size, words=words)
          watch.update(out)
    except ValueError:
      if not path.exists():  # else another process was faster, and its store is as good
        raise
  return store_lib.TokenStore.open(path)


class Watch:
  """Documents, tokens and tokens/s while a store is written: a line on a terminal, nothing
  elsewhere. The time left is told where the source reads files that are not compressed, as if all
  of them were text.
  """

  def __init__(self, source, title: str, show: bool = True):
    self._start, self._total = time.monotonic(), size(source)
    unit = 'tokens' if self._total is None else 'bytes'
    self._count = progress_lib.Count(f'tokenizing {title}', self._total, unit, show)

  def __enter__(self):
    self._count.__enter__()
    return self

  def __exit__(self, *_):
    self._count.__exit__()

  def update(self, out: StoreWriter):
    text = f'{out.documents:,} documents'
    if self._total is None:
      self._count.at(out.tokens, text)
    else:
      rate = out.tokens / max(time.monotonic() - self._start, 1e-9)
      self._count.at(out.bytes, f'{out.tokens:,} tokens  {rate:,.0f} tokens/s  {text}', False)


def size(source) -> int | None:
  """Bytes of the files that a source reads, None where there are none or they are compressed."""
  path = getattr(source, 'path', None)
  if path is None:
    return None
  files = _files.find(path)
  packed = (*_files.COMPRESSED, '.zip', '.tar')
  if not files or any(f.suffix in packed or f.is_dir() for f in files):
    return None
  return sum(f.stat().st_size for f in files)
