"""Byte-level byte-pair encoding, trained here or loaded from GPT-2's or Hugging Face's files.

Text is cut into words by a pattern, each word is written as bytes, and the pair of neighbours that
was merged first in training is merged until none is left. Sennrich, Haddow and Birch, 2016
(arXiv:1508.07909); on bytes: Radford et al., 2019 (GPT-2). The merging itself is done by the
`tokenizers` library.

Traps: a special such as <|endoftext|> that stands in a text is encoded as ordinary characters,
where the library by itself would give the special id. Bytes that are not UTF-8 become one token
each, and cut the text around them.
"""

import json
import re
from typing import Iterable, Iterator, Sequence

import numpy as np

from lmjax import kinds
from lmjax.registry import nearest
from lmjax.registry import register
from lmjax.tokenizers import _base
from lmjax.tokenizers import _bpe_files

EOS = '<|endoftext|>'
# Names under which known vocabularies keep their specials, the first present wins.
KNOWN = {
  'bos': ('<s>', '<bos>', '<|begin_of_text|>', '[CLS]'),
  'eos': (EOS, '</s>', '<eos>', '<|end_of_text|>', '[SEP]'),
  'pad': ('<pad>', '[PAD]', '<|pad|>'),
  'mask': ('<mask>', '[MASK]', '<|mask|>'),
}
# Characters given to the library at once; it takes some 150 bytes of memory for each.
_CHUNK = 1 << 18
# GPT-2's pattern never joins a character with white space behind it, so a cut in front of white
# space changes no token.
_CUT = re.compile(r'\S(?=[ \n\t\r])')


@register('tokenizer', lossless=lambda args: args['lossless'])
class Bpe:
  """Byte-level BPE from `path`.

  Arguments:
    path: a tokenizer.json, or a folder with encoder.json and vocab.bpe (or vocab.json and
      merges.txt); each file may be compressed with xz.
    bos, eos, pad, mask: the name of that special in the file; 'auto' looks for the usual names;
      None is none. A `mask` that the file does not have is added behind its last id, and
      `vocab_size` is one larger.
    lossless: False accepts files whose normalizer or pre-tokenizer changes the text; the part then
      claims no round trip.

  Raises ValueError naming the file where it is missing, damaged or of another kind, and Unsupported
  where it is not byte-level.
  """

  def __init__(
    self,
    path: str,
    bos: str | None = 'auto',
    eos: str | None = 'auto',
    pad: str | None = 'auto',
    mask: str | None = 'auto',
    lossless: bool = True,
  ):
    vocab = _bpe_files.load(path)
    trouble = _bpe_files.loses(vocab)
    if lossless and trouble:
      raise kinds.Unsupported(f'{path} is not lossless: {trouble}; bpe(lossless=False) accepts it')
    self.vocab_size = len(vocab.model['vocab']) + len(vocab.added)
    named = dict(bos=bos, eos=eos, pad=pad, mask=mask)
    ids = {role: _special(vocab, role, name) for role, name in named.items()}
    if mask not in (None, 'auto') and ids['mask'] is None:
      ids['mask'] = self.vocab_size
      self.vocab_size += 1
    self.bos, self.eos, self.pad, self.mask = ids['bos'], ids['eos'], ids['pad'], ids['mask']
    ordinary = {
      k: e for k, (i, e) in vocab.added.items() if not e.get('special') and i not in ids.values()
    }
    own_pattern = vocab.pre_tokenizer == _bpe_files.PRE_TOKENIZER
    self._cuttable = own_pattern and not (ordinary or vocab.normalizer)
    self._library = _library(vocab, ordinary)
    self._bytes, self._byte_ids = _tables(vocab, ordinary, self.vocab_size)
    self._print = _base.digest('bpe', *vocab.data, self.vocab_size, *ids.values())

  def encode(self, text: str | bytes) -> np.ndarray:
    """int32 (tokens,). Raises ValueError for half a surrogate pair, which has no UTF-8."""
    return self.encode_batch([text])[0]

  def encode_batch(self, texts: Sequence[str | bytes]) -> list[np.ndarray]:
    """Each text's ids, int32; runs on all cores.

    Long texts are given to the library in pieces where the pattern allows it (GPT-2's does), so
    that memory is bounded by the longest stretch without white space.
    """
    parts: list[list] = [[] for _ in texts]
    waiting: list[tuple[int, int, str]] = []
    size = 0
    for i, text in enumerate(texts):
      for piece in self._pieces(text):
        if isinstance(piece, bytes):
          parts[i].append(self._byte_ids[np.frombuffer(piece, np.uint8)])
          continue
        waiting.append((i, len(parts[i]), piece))
        parts[i].append(None)
        size += len(piece)
        if size >= 8 * _CHUNK:
          self._run(waiting, parts)
          waiting, size = [], 0
    self._run(waiting, parts)
    return [np.concatenate(p) if p else np.zeros(0, np.int32) for p in parts]

  def _run(self, waiting: list[tuple[int, int, str]], parts: list[list]):
    strings = [piece for _, _, piece in waiting]
    if len(strings) == 1:  # no need to wake the library's threads
      found = [self._library.encode(strings[0], add_special_tokens=False)]
    else:
      found = self._library.encode_batch_fast(strings, add_special_tokens=False)
    for (i, slot, _), encoding in zip(waiting, found, strict=True):
      parts[i][slot] = np.array(encoding.ids, np.int32)

  def _pieces(self, text: str | bytes) -> Iterator[str | bytes]:
    for piece in _base.stretches(text):
      at, cuttable = 0, isinstance(piece, str) and self._cuttable
      while cuttable and (found := _CUT.search(piece, at + _CHUNK)):
        yield piece[at : found.end()]
        at = found.end()
      yield piece[at:] if at else piece

  def decode_bytes(self, ids: Sequence[int]) -> bytes:
    """The bytes; specials are skipped. Raises ValueError for ids outside the vocabulary."""
    return b''.join([self._bytes[i] for i in _base.check_ids(ids, self.vocab_size).tolist()])

  def decode(self, ids: Sequence[int]) -> str:
    """The text; a byte that is not UTF-8, as where ids end within a character, becomes U+FFFD."""
    return self.decode_bytes(ids).decode('utf-8', errors='replace')

  def fingerprint(self) -> str:
    return self._print

  @classmethod
  def train(cls, texts: Iterable[str], vocab_size: int, min_frequency: int = 2) -> bytes:
    """The content of a tokenizer.json: <|endoftext|>, the 256 bytes and the merges.

    Pairs seen fewer than `min_frequency` times are not merged. The same texts give the same bytes,
    on any number of cores. Raises ValueError where the vocabulary is too small for the bytes or the
    texts do not give so many merges.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    if vocab_size < 257:
      raise ValueError(
        f'vocab_size={vocab_size}: byte-level BPE needs at least 257, the bytes and {EOS}'
      )
    if min_frequency < 1:
      raise ValueError(f'min_frequency={min_frequency} must be 1 or more')
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    library.train_from_iterator(
      texts,
      trainer=trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=[EOS],
        initial_alphabet=sorted(_bpe_files.alphabet()),
        show_progress=False,
      ),
    )
    got = library.get_vocab_size()
    if got != vocab_size:
      raise ValueError(
        f'vocab_size={vocab_size}: the text gives only {got} entries with pairs '
        f'seen {min_frequency} times or more; ask for fewer or give more text'
      )
    return library.to_str().encode()


def _special(vocab: _bpe_files.Vocabulary, role: str, name: str | None) -> int | None:
  """The id of a special; None where there is none, and for a mask that is still to be added."""
  if name is None:
    return None
  if name == 'auto':
    return next(
      (
        vocab.added[n][0]
        for n in KNOWN[role]
        if n in vocab.added and vocab.added[n][1].get('special')
      ),
      None,
    )
  if name in vocab.added:
    return vocab.added[name][0]
  if role == 'mask' and name and name not in vocab.model['vocab']:
    return None
  raise ValueError(
    f'{role}={name!r} is not a special of {vocab.path}{nearest(name, vocab.added)} '
    f'It has: {", ".join(list(vocab.added)[:20]) or "none"}'
  )


def _library(vocab: _bpe_files.Vocabulary, ordinary: dict):
  """The library's tokenizer without any special in it, so that no text can give one."""
  from tokenizers import Tokenizer

  # Kept added tokens go into the vocab as well: there the library finds their ids, elsewhere it
  # would number them anew.
  pieces = vocab.model['vocab'] | {k: vocab.added[k][0] for k in ordinary}
  spec = {
    'version': '1.0',
    'truncation': None,
    'padding': None,
    'added_tokens': list(ordinary.values()),
    'normalizer': vocab.normalizer,
    'pre_tokenizer': vocab.pre_tokenizer,
    'post_processor': None,
    'decoder': None,
    'model': vocab.model | {'vocab': pieces},
  }
  try:
    return Tokenizer.from_str(json.dumps(spec))
  except Exception as e:  # the library raises plain Exception
    raise ValueError(f'{vocab.path} cannot be loaded: {e}') from None


def _tables(
  vocab: _bpe_files.Vocabulary, ordinary: dict, size: int
) -> tuple[list[bytes], np.ndarray]:
  """The bytes of each id (none for specials), and the id of each byte, int32 (256,)."""
  letters = _bpe_files.alphabet()
  of = {c: b for b, c in enumerate(letters)}
  table = [b''] * size
  for piece, i in vocab.model['vocab'].items():
    # An entry outside the alphabet is never made from text; it means its own characters.
    table[i] = bytes(of[c] for c in piece) if all(c in of for c in piece) else piece.encode()
  for piece in ordinary:
    table[vocab.added[piece][0]] = piece.encode()
  return table, np.array([vocab.model['vocab'][c] for c in letters], np.int32)
