"""Byte-level BPE whose vocabulary lacks some of the 256 bytes (SmolLM's lacks 21 of them).

Such a byte has no id: the library that makes these files leaves it out of a word before pairs are
merged, so that ids do not give the text back. `bpe` reads files with all bytes.
"""

import dataclasses
import json
import pathlib
from typing import Sequence

import numpy as np

from lmjax import files
from lmjax import kinds
from lmjax.registry import register
from lmjax.tokenizers import _base
from lmjax.tokenizers import _bpe_files


@register('tokenizer', lossless=False)
class BpeWithout:
  """Byte-level BPE from a tokenizer.json without some bytes.

  Arguments:
    path: the tokenizer.json; it may be compressed with xz.
    bos, eos, pad: the name of that special in the file; None is none.

  Raises ValueError naming the file where it is missing, damaged or of another kind, and where it
  has all bytes.
  """

  mask = None

  def __init__(
    self, path: str, bos: str | None = None, eos: str | None = None, pad: str | None = None
  ):
    vocab = _bpe_files._load_json(pathlib.Path(files.expanded(path)))
    letters, pieces = _bpe_files.alphabet(), vocab.model['vocab']
    missing = [c for c in letters if c not in pieces]
    if not missing:
      raise ValueError(f'{path} has a token for each byte: bpe(path={path!r}) reads it')
    self.vocab_size = size = len(pieces) + len(vocab.added)
    behind = {c: size + i for i, c in enumerate(missing)}
    model = vocab.model | {'vocab': pieces | behind}
    _bpe_files._check_ids(dataclasses.replace(vocab, model=model))
    self.bos, self.eos, self.pad = (
      None if name is None else _special(vocab, role, name)
      for role, name in dict(bos=bos, eos=eos, pad=pad).items()
    )
    plain = sorted(k for k, (_, e) in vocab.added.items() if not e.get('special'))
    if plain:
      raise kinds.Unsupported(f'{path}: the added token {plain[0]!r} is no special')
    self._library = _library(vocab)
    of = {c: b for b, c in enumerate(letters)}
    self._bytes = [b''] * size
    for piece, i in pieces.items():
      known = all(c in of for c in piece)
      self._bytes[i] = bytes(of[c] for c in piece) if known else piece.encode()
    self._print = _base.digest('bpe_without', *vocab.data, self.bos, self.eos, self.pad)

  def encode(self, text: str | bytes) -> np.ndarray:
    """int32 (tokens,). Raises ValueError for what is no UTF-8."""
    text = _base.valid_text(text)
    return np.array(self._library.encode(text, add_special_tokens=False).ids, np.int32)

  def encode_batch(self, texts: Sequence[str | bytes]) -> list[np.ndarray]:
    """Each text's ids, int32."""
    return [self.encode(text) for text in texts]

  def decode_bytes(self, ids: Sequence[int]) -> bytes:
    """The bytes; specials are skipped. Raises ValueError for ids outside the vocabulary."""
    return b''.join([self._bytes[i] for i in _base.check_ids(ids, self.vocab_size).tolist()])

  def decode(self, ids: Sequence[int]) -> str:
    """The text; a byte that is not UTF-8, as where ids end within a character, becomes U+FFFD."""
    return self.decode_bytes(ids).decode('utf-8', errors='replace')

  def fingerprint(self) -> str:
    return self._print


def _special(vocab: _bpe_files.Vocabulary, role: str, name: str) -> int:
  if name not in vocab.added:
    raise ValueError(
      f'{role}={name!r} is not a special of {vocab.path}; it has: '
      f'{", ".join(list(vocab.added)[:20]) or "none"}'
    )
  return vocab.added[name][0]


def _library(vocab: _bpe_files.Vocabulary):
  """The library's tokenizer without any special, so that no text can give one."""
  from tokenizers import Tokenizer

  spec = dict(version='1.0', normalizer=vocab.normalizer, pre_tokenizer=vocab.pre_tokenizer)
  try:
    return Tokenizer.from_str(json.dumps(spec | dict(model=vocab.model, added_tokens=[])))
  except Exception as e:  # the library raises plain Exception
    raise ValueError(f'{vocab.path} cannot be loaded: {e}') from None
