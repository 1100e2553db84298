"""Unigram pieces from a tokenizer.json, as T5 has them: of all ways to cut a text into pieces of a
vocabulary, the one whose pieces have the largest product of probabilities.

Kudo, 2018 (arXiv:1804.10959); T5: Raffel et al., 2020 (arXiv:1910.10683). The cutting is done by
the `tokenizers` library; what is done to a text before (Unicode, white space), and how pieces
become text again, is as the file says.

Not lossless: T5's files join white space, and characters that no piece has are the one token for
unknown ones (with byte_fallback: bytes).

Traps: a special that stands in a text is encoded as ordinary characters, where the library by
itself would give the special id. Files with byte_fallback make the byte 0x41 of the text <0x41>, as
the library does.
"""

import base64
import contextlib
import json
import pathlib
import re
from typing import Any, Mapping, Sequence

import numpy as np

from lmjax import files
from lmjax import kinds
from lmjax.registry import register
from lmjax.tokenizers import _base
from lmjax.tokenizers import _files

# Names under which known files keep their specials.
KNOWN = {'bos': '<s>', 'eos': '</s>', 'pad': '<pad>', 'mask': '<mask>'}
SENTINEL = re.compile(r'<extra_id_(\d{1,6})>')
# In place of the unknown piece, whose own name may stand in a text: characters that none has.
NOWHERE = '\U0010ffff' * 2


@register('tokenizer', lossless=False)
class Unigram:
  """Unigram from `path`, a tokenizer.json; it may be compressed with xz.

  bos, eos, pad, mask: the name of that special in the file; 'auto' is the usual name where the file
  has it, None is none. `extra` holds the ids of the specials <extra_id_0>, <extra_id_1>, ... of the
  file, in that order. Raises ValueError naming the file where it is missing, damaged or of another
  kind, and where it does not have a special.
  """

  def __init__(
    self,
    path: str,
    bos: str | None = 'auto',
    eos: str | None = 'auto',
    pad: str | None = 'auto',
    mask: str | None = 'auto',
  ):
    where = pathlib.Path(files.expanded(path))
    text = _files.read_text(where)
    spec = _files.parse_json(text, where)
    pieces, added = _vocabulary(spec, where)
    ids = {p: i for i, p in enumerate(pieces)}
    named = dict(bos=bos, eos=eos, pad=pad, mask=mask)
    of = {role: _special(ids, added, where, role, name) for role, name in named.items()}
    self.bos, self.eos, self.pad, self.mask = of['bos'], of['eos'], of['pad'], of['mask']
    self.extra = _sentinels(ids, added, where)
    self.vocab_size, self.unknown = len(pieces), spec['model'].get('unk_id')
    for role, i in of.items():
      if i is not None and i == self.unknown:
        raise ValueError(f'{where}: {role}={pieces[i]!r} is what unknown characters become')
    self._pieces = pieces
    self._specials = {ids[n] for n in added} | {i for i in of.values() if i is not None}
    self._specials -= {self.unknown}
    kept = [i for i in range(len(spec['model']['vocab'])) if i not in self._specials]
    self._ids = np.array(kept, np.int32)  # of the library's, which has no specials
    self._library = _library(spec, kept, where)
    self._print = _base.digest('unigram', text, *of.values())
    self._where = where
    self.encode('a \u2603')  # what the library finds out only then

  def encode(self, text: str | bytes) -> np.ndarray:
    """int32 (tokens,). Raises ValueError for what is no UTF-8."""
    return self.encode_batch([text])[0]

  def encode_batch(self, texts: Sequence[str | bytes]) -> list[np.ndarray]:
    """Each text's ids, int32; runs on all cores."""
    valid = [_base.valid_text(t) for t in texts]
    with _told(self._where):
      if len(valid) == 1:  # no need to wake the library's threads
        found = [self._library.encode(valid[0], add_special_tokens=False)]
      else:
        found = self._library.encode_batch_fast(valid, add_special_tokens=False)
    return [self._ids[np.array(e.ids, np.int64)] for e in found]

  def decode_bytes(self, ids: Sequence[int]) -> bytes:
    """The UTF-8 of `decode`."""
    return self.decode(ids).encode('utf-8')

  def decode(self, ids: Sequence[int]) -> str:
    """The text, by the file's decoder; specials are skipped, what is unknown is the file's name for
    it. Raises ValueError for ids outside the vocabulary.
    """
    ids = _base.check_ids(ids, self.vocab_size).tolist()
    pieces = [self._pieces[i] for i in ids if i not in self._specials]
    decoder = self._library.decoder
    return ' '.join(pieces) if decoder is None else decoder.decode(pieces)

  def fingerprint(self) -> str:
    return self._print


def _vocabulary(spec: Mapping[str, Any], where: pathlib.Path) -> tuple[list[str], set[str]]:
  """(the piece of each id, those that are added: specials). Raises ValueError."""
  model = spec.get('model')
  kind = model.get('type') if isinstance(model, dict) else None
  if kind != 'Unigram':
    raise ValueError(f'{where}: its model is {kind!r}; a tokenizer.json of Unigram is expected')
  vocab, added = model.get('vocab'), spec.get('added_tokens') or []
  try:
    ids = {piece: i for i, (piece, _) in enumerate(vocab)}
    more = {e['content']: e['id'] for e in added}
    whole = len(ids) == len(vocab) > 0 and all(ids.get(p, i) == i for p, i in more.items())
    whole = whole and all(type(p) is str and type(x) in (int, float) for p, x in vocab)
    whole = whole and all(type(i) is int for i in more.values())
    ids |= more
    whole = whole and sorted(ids.values()) == list(range(len(ids)))
  except (TypeError, KeyError, ValueError):
    whole = False
  if not whole:
    raise ValueError(
      f'{where}: a list of different pieces with their scores, and added_tokens whose ids agree '
      'with it or go on behind it without gaps, are expected'
    )
  plain = [e['content'] for e in added if not e.get('special') and not _is_sentinel(e['content'])]
  if plain:
    raise kinds.Unsupported(f'{where}: the added token {plain[0]!r} is no special')
  _check_unknown(model, set(ids), where)
  return sorted(ids, key=ids.get), set(more)


def _check_unknown(model: Mapping[str, Any], pieces: set[str], where: pathlib.Path):
  """Raises ValueError where some text has no ids."""
  unknown, n = model.get('unk_id'), len(model['vocab'])
  if unknown is None and model.get('byte_fallback'):
    missing = [b for b in range(256) if f'<0x{b:02X}>' not in pieces]
    if missing:
      raise ValueError(f'{where}: it has neither unk_id nor the byte 0x{missing[0]:02x}')
  elif type(unknown) is not int or not 0 <= unknown < n:
    raise ValueError(f'{where}: unk_id={unknown!r}: a place in its vocabulary of {n} is expected')


def _special(
  ids: Mapping[str, int], added: set[str], where: pathlib.Path, role: str, name: str | None
) -> int | None:
  if name is None or name == 'auto' and KNOWN[role] not in added:
    return None
  name = KNOWN[role] if name == 'auto' else name
  if name not in ids:
    raise ValueError(f'{where}: {role}={name!r} is not in its vocabulary')
  return ids[name]


def _is_sentinel(name: str) -> bool:
  return SENTINEL.fullmatch(name) is not None


def _sentinels(ids: Mapping[str, int], added: set[str], where: pathlib.Path) -> tuple[int, ...]:
  names = sorted(filter(_is_sentinel, added), key=lambda n: int(SENTINEL.fullmatch(n)[1]))
  for i, name in enumerate(names):
    if name != f'<extra_id_{i}>':
      raise ValueError(f'{where}: it has {name} but no <extra_id_{i}>')
  return tuple(ids[n] for n in names)


def _library(spec: Mapping[str, Any], kept: list[int], where: pathlib.Path):
  """The library's tokenizer of these pieces, so that no text can give a special."""
  from tokenizers import Tokenizer

  model = spec['model']
  unknown = model.get('unk_id')
  vocab = [[NOWHERE if i == unknown else model['vocab'][i][0], model['vocab'][i][1]] for i in kept]
  unknown = None if unknown is None else kept.index(unknown)
  own = dict(version='1.0', added_tokens=[], model=dict(model, vocab=vocab, unk_id=unknown))
  own |= {k: spec.get(k) for k in ('normalizer', 'pre_tokenizer', 'decoder')}
  _check_charsmap(own['normalizer'], where)
  with _told(where):
    return Tokenizer.from_str(json.dumps(own))


def _check_charsmap(normalizer: Any, where: pathlib.Path):
  """Raises ValueError where a table of characters is cut off, which the library would not survive:
  bytes of a trie, as uint32; the trie; the texts that it leads to.
  """
  if not isinstance(normalizer, dict):
    return
  steps = normalizer.get('normalizers')
  for step in steps if isinstance(steps, list) else ():
    _check_charsmap(step, where)
  if normalizer.get('type') != 'Precompiled':
    return
  try:
    data = base64.b64decode(normalizer['precompiled_charsmap'], validate=True)
    size = int.from_bytes(data[:4], 'little')
    whole = 1024 <= size <= len(data) - 4 and not size % 4
    data[4 + size :].decode('utf-8')
  except (KeyError, TypeError, ValueError):
    whole = False
  if not whole:
    raise ValueError(f'{where}: precompiled_charsmap of its normalizer is damaged')


@contextlib.contextmanager
def _told(where: pathlib.Path):
  """What the library raises as a ValueError of one line; a panic of Rust is no Exception."""
  try:
    yield
  except BaseException as e:
    if not isinstance(e, Exception) and type(e).__name__ != 'PanicException':
      raise
    raise ValueError(f'{where} cannot be used: {" ".join(str(e).split())}') from None
