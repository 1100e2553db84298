"""Token stores: documents as ids, in one flat memory-mapped array.

A store on disk is a directory of three files:
  tokens.bin   all ids, little-endian uint16 (ids up to 65,535) or uint32
  offsets.npy  int64 (documents + 1,): document i is tokens[offsets[i]:offsets[i + 1]]; it may be
               empty
  meta.json    dtype, documents, tokens, bytes and words of the original text, largest id,
               checksums, fingerprints
It is written under a temporary name and renamed when complete (`writer.py`), so what exists is
whole or was damaged later; `TokenStore.open` compares sizes and, up to CHECKED bytes of ids, the
checksums, and names the file that differs. A larger store is not read from end to end at every
start (about a second per GB, much more over a network): `verify` does it when asked.
"""

import hashlib
import json
import os
import pathlib
from typing import Any

import numpy as np

from lmjax import files

FORMAT = 1
_NEEDED = dict(
  format=int,
  dtype=str,
  documents=int,
  tokens=int,
  tokens_bin_bytes=int,
  offsets_npy_bytes=int,
  fingerprint=str,
)
DTYPES = {'uint16': np.dtype('<u2'), 'uint32': np.dtype('<u4')}
CHECKED = 1 << 30  # bytes of ids up to which opening a store reads all of them
_BLOCK = 1 << 24


class TokenStore:
  """Read access to documents of token ids.

  Attributes:
    tokens: all ids, one flat array, usually memory-mapped. offsets: int64 (documents + 1,).
    bytes, words: UTF-8 bytes and white-space separated words of the original text, or None where
      unknown.
    meta: what is known beyond that (tokenizer, bos, eos, max_id).
  """

  def __init__(
    self,
    tokens,
    offsets,
    *,
    fingerprint: str,
    meta: dict[str, Any] | None = None,
    name: str = 'tokens',
  ):
    """Args: name: for messages. Raises ValueError when ids are not whole numbers or the offsets do
    not fit.
    """
    if tokens.ndim != 1 or tokens.dtype.kind not in 'ui':
      raise ValueError(
        f'{name}: ids are a flat array of whole numbers, not {tokens.dtype} of shape {tokens.shape}'
      )
    offsets = np.asarray(offsets)
    fits = (
      offsets.ndim == 1
      and offsets.size > 0
      and offsets.dtype.kind in 'ui'
      and offsets[0] == 0
      and offsets[-1] == len(tokens)
      and bool(np.all(offsets[1:] >= offsets[:-1]))
    )
    if not fits:
      raise ValueError(f'{name}: offsets must rise from 0 to the number of tokens, {len(tokens)}')
    self.tokens, self.offsets = tokens, offsets.astype(np.int64, copy=False)
    self.meta, self.name, self._fingerprint = dict(meta or {}), name, fingerprint

  @classmethod
  def open(cls, path) -> 'TokenStore':
    """Opens a store directory. Raises ValueError naming the file that is missing, truncated,
    unreadable or, in a store of at most CHECKED bytes of ids, not what was written.
    """
    path = pathlib.Path(path)
    meta = read_meta(path)
    dtype = DTYPES.get(meta['dtype'])
    if dtype is None:
      raise ValueError(
        f'{path / "meta.json"}: dtype={meta["dtype"]!r}; {" or ".join(DTYPES)} is expected'
      )
    for name, key in (('tokens.bin', 'tokens_bin_bytes'), ('offsets.npy', 'offsets_npy_bytes')):
      if not (path / name).is_file():
        raise ValueError(f'{path / name} is missing from the token store')
      size = (path / name).stat().st_size
      if size != meta[key]:
        raise ValueError(
          f'{path / name} is damaged: {name} has {size} bytes, meta.json says {meta[key]}'
        )
    if meta['tokens'] * dtype.itemsize != meta['tokens_bin_bytes']:
      raise ValueError(
        f'{path / "meta.json"}: {meta["tokens"]} tokens of {meta["dtype"]} do not make '
        f'{meta["tokens_bin_bytes"]} bytes'
      )
    try:
      offsets = np.load(path / 'offsets.npy', allow_pickle=False)
    except (ValueError, EOFError) as e:
      raise ValueError(f'{path / "offsets.npy"} is damaged: {e}') from None
    empty = not meta['tokens']
    tokens = np.zeros(0, dtype) if empty else np.memmap(path / 'tokens.bin', dtype, mode='r')
    store = cls(tokens, offsets, fingerprint=meta['fingerprint'], meta=meta, name=str(path))
    if meta['tokens_bin_bytes'] <= CHECKED:
      store.verify()
    return store

  def __len__(self) -> int:
    """Documents."""
    return len(self.offsets) - 1

  def __getitem__(self, document: int) -> np.ndarray:
    """The ids of one document."""
    if not 0 <= document < len(self):
      raise IndexError(f'{self.name}: document {document} is outside 0 ... {len(self) - 1}')
    return self.tokens[self.offsets[document] : self.offsets[document + 1]]

  @property
  def lengths(self) -> np.ndarray:
    """int64 (documents,): tokens of each document."""
    return np.diff(self.offsets)

  @property
  def bytes(self) -> int | None:
    return self.meta.get('bytes')

  @property
  def words(self) -> int | None:
    return self.meta.get('words')

  @property
  def bytes_per_token(self) -> float | None:
    """UTF-8 bytes of the original text over tokens (separators counted), or None where unknown."""
    return self.bytes / len(self.tokens) if self.bytes and len(self.tokens) else None

  def fingerprint(self) -> str:
    """Changes when the tokens or the bounds of the documents do."""
    return self._fingerprint

  def verify(self):
    """Reads everything and compares checksums. Raises ValueError when the tokens, or the bounds of
    the documents, are not the ones that were written.
    """
    if 'tokens_sha256' not in self.meta:
      return
    digest = sha256(self.tokens)
    if digest != self.meta['tokens_sha256']:
      raise ValueError(
        f'{self.name}: the checksum of tokens.bin is not the one in meta.json, so that a file is '
        'damaged: prepare the text again (a store that a run made itself can be deleted)'
      )
    if self._fingerprint != combine(self.meta['dtype'], digest, sha256(self.offsets)):
      raise ValueError(
        f'{self.name}: offsets.npy does not have the fingerprint in meta.json, so that a file is '
        'damaged: prepare the text again (a store that a run made itself can be deleted)'
      )

  def check_ids(self, vocab_size: int):
    """Raises ValueError when an id is not below vocab_size (or negative). Uses the recorded maximum
    where there is one.
    """
    top = self.meta.get('max_id')
    low = 0 if top is not None else _extreme(self.tokens, np.min)
    top = _extreme(self.tokens, np.max) if top is None else top
    bad = low if low < 0 else top
    if bad < 0 or bad >= vocab_size:
      raise ValueError(
        f'{self.name}: id {bad} is not in the vocabulary; 0 ... {vocab_size - 1} is expected'
      )


def read_meta(path: pathlib.Path) -> dict[str, Any]:
  """meta.json of a store directory. Raises ValueError when it is missing or not what this version
  writes.
  """
  file = path / 'meta.json'
  if not file.is_file():
    raise ValueError(f'{path} is not a token store: {file} is missing')
  meta = files.read_json(file)
  for key, kind in sorted(_NEEDED.items()):
    if not isinstance(meta, dict) or key not in meta:
      raise ValueError(f'{file} is damaged: {key} is missing')
    if type(meta[key]) is not kind:
      raise ValueError(f'{file} is damaged: {key} is {str(meta[key])[:40]}, not a {kind.__name__}')
  if meta['format'] != FORMAT:
    raise ValueError(f'{file}: format={meta["format"]!r}; this version reads {FORMAT}')
  return meta


def from_documents(
  documents, *, vocab_size: int | None = None, name: str = 'tokens', **meta
) -> TokenStore:
  """A store in memory from an iterable of id arrays; for tests, notebooks and small sets."""
  arrays = [np.asarray(d) for d in documents]
  offsets = np.concatenate([[0], np.cumsum([len(a) for a in arrays])]).astype(np.int64)
  tokens = (
    np.concatenate([a.astype(np.uint32) for a in arrays]) if arrays else np.zeros(0, np.uint32)
  )
  store = TokenStore(
    tokens, offsets, fingerprint=fingerprint_of(tokens, offsets), meta=meta, name=name
  )
  if vocab_size is not None:
    store.check_ids(vocab_size)
  return store


def fingerprint_of(tokens, offsets) -> str:
  """Of the ids (as uint32) and the bounds of documents, in memory."""
  return combine('ids', sha256(tokens.astype('<u4')), sha256(offsets.astype('<i8')))


def combine(*parts) -> str:
  """One fingerprint of several printable values."""
  return hashlib.sha256(json.dumps([str(p) for p in parts]).encode()).hexdigest()


def sha256(array) -> str:
  """Of the bytes of a flat array, read in blocks."""
  digest = hashlib.sha256()
  for i in range(0, len(array), _BLOCK):
    digest.update(np.ascontiguousarray(array[i : i + _BLOCK]).data)
  return digest.hexdigest()


def _extreme(array, what) -> int:
  found = [int(what(array[i : i + _BLOCK])) for i in range(0, len(array), _BLOCK)]
  return int(what(found)) if found else 0


def stored(
  source,
  tokenizer,
  cache_dir: str | os.PathLike,
  *,
  bos: bool = False,
  eos: bool = True,
  progress: bool = True,
) -> TokenStore:
  """The documents of a source as a store: tokenized once into `cache_dir`, found there the next
  time.

  Args:
    source: a source, or the handle of one. tokenizer: likewise.
    cache_dir: a folder; each store is a directory in it named by a hash of source, tokenizer, bos
      and eos.
    bos, eos: put the tokenizer's beginning-of-text id before, its end-of-text id after each
      document. Empty documents stay empty. Token sources are taken as they are, except that a
      prepared store made with other settings is refused.
    progress: a bar on a terminal.

  Raises:
    ValueError: naming the file, when the text cannot be read, there is none, or an id is outside
      the vocabulary.
  """
  from lmjax.data import writer  # it imports this file
  from lmjax.registry import Part

  source = source() if isinstance(source, Part) else source
  tokenizer = tokenizer() if isinstance(tokenizer, Part) else tokenizer
  if hasattr(source, 'store'):
    store = source.store()
    _check_prepared(store, tokenizer, bos, eos)
    store.check_ids(tokenizer.vocab_size)
  else:
    store = writer.cached(
      source, tokenizer, pathlib.Path(cache_dir), bos=bos, eos=eos, progress=progress
    )
  if not len(store.tokens):
    raise ValueError(
      f'{source}: no text in it; at least one document that is not empty is expected'
    )
  return store


def _check_prepared(store: TokenStore, tokenizer, bos: bool, eos: bool):
  """A store that says how it was made must agree with what is asked for now."""
  made = store.meta.get('tokenizer')
  if made is not None and made != tokenizer.fingerprint():
    raise ValueError(
      f'{store.name} was prepared with another tokenizer '
      f'({store.meta.get("tokenizer_spec") or made}); '
      'name that one in config.data.tokenizer or prepare the text again'
    )
  for key, asked in (
    ('bos', bos and tokenizer.bos is not None),
    ('eos', eos and tokenizer.eos is not None),
  ):
    if store.meta.get(key, asked) != asked:
      raise ValueError(
        f'{store.name} was prepared with {key}={store.meta[key]}, but {key}={asked} is asked for; '
        f'set config.data.{key}={str(store.meta[key]).lower()} or prepare the text again'
      )
