"""WordPiece from a tokenizer.json, as BERT has it: words are cut into the longest pieces of a
vocabulary from the left; pieces within a word begin with ##.

Schuster and Nakajima, 2012; Wu et al., 2016 (arXiv:1609.08144); Devlin et al., 2018
(arXiv:1810.04805). The cutting is done by the `tokenizers` library. What the vocabulary cannot
spell, and words of more than 100 characters, are the token for unknown words; case, accents and
spaces may be lost, as the file says.
"""

import json
import pathlib
from typing import Sequence

import numpy as np

from lmjax.registry import register
from lmjax.tokenizers import _base
from lmjax.tokenizers import _files


@register('tokenizer', lossless=False)
class Wordpiece:
  """WordPiece from `path`, a tokenizer.json; it may be compressed with xz.

  bos, eos, pad, mask: the name of that special in the file; None is none. Specials in a text are
  ordinary characters. Raises ValueError naming the file where it is missing, damaged or of another
  kind, and where it does not have a special.
  """

  def __init__(
    self,
    path: str,
    bos: str | None = '[CLS]',
    eos: str | None = '[SEP]',
    pad: str | None = '[PAD]',
    mask: str | None = '[MASK]',
  ):
    where = pathlib.Path(path)
    text = _files.read_text(where)
    spec = _files.parse_json(text, where)
    ids, unknown = _vocabulary(spec, where)
    named = dict(bos=bos, eos=eos, pad=pad, mask=mask)
    for role, name in named.items():
      if name is not None and name not in ids:
        raise ValueError(f'{path}: {role}={name!r} is not in its vocabulary')
    of = {role: None if name is None else ids[name] for role, name in named.items()}
    self.bos, self.eos, self.pad, self.mask = of['bos'], of['eos'], of['pad'], of['mask']
    self.vocab_size, self.unknown = len(ids), ids[unknown]
    self._pieces = sorted(ids, key=ids.get)
    added = {e['content'] for e in spec.get('added_tokens') or () if e.get('special')}
    self._specials = {ids[n] for n in {*added, *named.values()} - {unknown, None}}
    self._library = _library(spec, self._pieces, self._specials, where)
    self._print = _base.digest('wordpiece', text, *of.values())

  def encode(self, text: str | bytes) -> np.ndarray:
    """int32 (tokens,). Raises ValueError for what is no UTF-8."""
    text = _base.valid_text(text)
    return np.array(self._library.encode(text, add_special_tokens=False).ids, np.int32)

  def encode_batch(self, texts: Sequence[str | bytes]) -> list[np.ndarray]:
    """Each text's ids, int32."""
    found = self._library.encode_batch(
      [_base.valid_text(t) for t in texts], add_special_tokens=False
    )
    return [np.array(f.ids, np.int32) for f in found]

  def decode_bytes(self, ids: Sequence[int]) -> bytes:
    """The UTF-8 of `decode`."""
    return self.decode(ids).encode('utf-8')

  def decode(self, ids: Sequence[int]) -> str:
    """Words with a space between them; specials are skipped. Raises ValueError for ids outside the
    vocabulary.
    """
    ids = _base.check_ids(ids, self.vocab_size).tolist()
    text = ' '.join(self._pieces[i] for i in ids if i not in self._specials)
    return text.replace(' ##', '').removeprefix('##')

  def fingerprint(self) -> str:
    return self._print


def _vocabulary(spec, where: pathlib.Path) -> tuple[dict[str, int], str]:
  """(ids by piece, the piece of unknown words)."""
  model = spec.get('model') if isinstance(spec, dict) else None
  kind = model.get('type') if isinstance(model, dict) else None
  if kind != 'WordPiece':
    raise ValueError(f'{where}: its model is {kind!r}; a tokenizer.json of WordPiece is expected')
  ids, added = model.get('vocab'), spec.get('added_tokens') or []
  try:
    ids = {**ids, **{e['content']: e['id'] for e in added}}
    whole = sorted(ids.values()) == list(range(len(ids)))
  except (TypeError, KeyError, ValueError):
    whole = False
  unknown = model.get('unk_token')
  if not whole or unknown not in ids:
    raise ValueError(
      f'{where}: a vocabulary of ids from 0 on without gaps, and unk_token among its pieces, are '
      'expected'
    )
  return ids, unknown


def _library(spec, pieces: list[str], specials: set[int], where: pathlib.Path):
  """The library's tokenizer without any special, so that no text can give one."""
  from tokenizers import Tokenizer

  vocab = {p: i for i, p in enumerate(pieces) if i not in specials}
  own = dict(version='1.0', added_tokens=[], model=spec['model'] | dict(vocab=vocab))
  own |= {k: spec.get(k) for k in ('normalizer', 'pre_tokenizer')}
  try:
    return Tokenizer.from_str(json.dumps(own))
  except Exception as e:  # the library raises plain Exception
    raise ValueError(f'{where} cannot be loaded: {e}') from None
