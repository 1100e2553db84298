"""SentencePiece: unigram or BPE pieces over raw text, spaces being ordinary characters.

Kudo and Richardson, 2018 (arXiv:1808.06226); unigram: Kudo, 2018 (arXiv:1804.10959). Loads a .model
file, or the tokenizer.bin that llama2.c makes from one. The pieces are found by the `sentencepiece`
library.

Not lossless: bytes that are not UTF-8 are refused, the library's space sign U+2581 in a text comes
back as a space, and models may normalize. Where the model normalizes nothing and falls back to
bytes (as Llama 2's, and those trained here), all other text comes back.

Traps: most models put a space in front of a text, so two texts encoded apart are not the whole
encoded at once, and `decode` takes that space away. `encode` adds no bos or eos. A control piece
that stands in a text is encoded as ordinary characters.
"""

import io
import itertools
from typing import Iterable, Iterator, Literal, Sequence

import numpy as np

from lmjax import kinds
from lmjax.registry import register
from lmjax.tokenizers import _base
from lmjax.tokenizers import _files
from lmjax.tokenizers import _llama2c

MASKS = ('<mask>', '[MASK]')
# Characters; lines are cut there, since the library drops those past `max_sentence_length` bytes.
_LINE = 2000


@register('tokenizer', lossless=False)
class SentencePiece:
  """SentencePiece from `path`: a .model file or llama2.c's tokenizer.bin, plain or xz.

  bos, eos and pad are those of the model. `mask` names its mask piece; one that it does not have is
  added behind its last id, and `vocab_size` is one larger; 'auto' looks for the usual names; None
  is none.

  Raises ValueError naming the file where it is missing, damaged or of another kind, Unsupported
  where the library is not installed.
  """

  def __init__(self, path: str, mask: str | None = 'auto'):
    library = _import()
    data = _files.read(path)
    model = _llama2c.to_model(data, path) if _llama2c.is_bin(data) else _parse(data, path)
    ids = _specials(model)
    self.bos, self.eos, self.pad = ids['bos'], ids['eos'], ids['pad']
    self.mask = _mask(model, mask, path)
    _hide(model, [self.bos, self.eos, self.pad, self.mask])
    self.vocab_size = len(model.pieces)
    try:
      self._library = library.SentencePieceProcessor(model_proto=model.SerializeToString())
    except RuntimeError as e:
      raise ValueError(f'{path} cannot be loaded: {_sentence(e)}') from None
    self._print = _base.digest('sentencepiece', data, self.vocab_size, self.mask)

  def encode(self, text: str | bytes) -> np.ndarray:
    """int32 (tokens,), without bos and eos. Raises ValueError for what is not Unicode text."""
    return np.array(self._library.encode(_base.valid_text(text)), np.int32)

  def encode_batch(self, texts: Sequence[str | bytes]) -> list[np.ndarray]:
    """Each text's ids, int32; runs on all cores."""
    valid = [_base.valid_text(t) for t in texts]
    return [np.array(ids, np.int32) for ids in self._library.encode(valid)] if valid else []

  def decode(self, ids: Sequence[int]) -> str:
    """The text; specials are skipped, unk is the model's sign for it.

    Raises ValueError for ids outside the vocabulary.
    """
    return self._library.decode(_base.check_ids(ids, self.vocab_size).tolist())

  def fingerprint(self) -> str:
    return self._print

  @classmethod
  def train(
    cls,
    texts: Iterable[str],
    vocab_size: int,
    model_type: Literal['unigram', 'bpe'] = 'unigram',
    character_coverage: float = 0.9995,
  ) -> bytes:
    """The content of a .model file: unk 0, <s> 1, </s> 2, the 256 bytes, then pieces.

    `character_coverage` is the share of the text's characters that get pieces of their own, the
    others become bytes. Lines are the library's sentences; nothing is normalized. The same texts
    give the same bytes. Raises ValueError where the texts do not give so many pieces.
    """
    library = _import()
    if model_type not in ('unigram', 'bpe'):
      raise ValueError(f'model_type={model_type!r} must be unigram or bpe')
    if not 0.98 <= character_coverage <= 1:
      raise ValueError(f'character_coverage={character_coverage} must be from 0.98 to 1')
    lines = _Lines(texts)
    first = next(lines, None)
    if first is None:
      raise ValueError('there is no text to train on')
    out = io.BytesIO()
    try:
      library.SentencePieceTrainer.train(
        sentence_iterator=itertools.chain([first], lines),
        model_writer=out,
        vocab_size=vocab_size,
        model_type=model_type,
        character_coverage=character_coverage,
        byte_fallback=True,
        normalization_rule_name='identity',
        remove_extra_whitespaces=False,
        max_sentence_length=4 * _LINE + 8,
        num_threads=4,
        minloglevel=2,
      )
    except Exception as e:
      raise lines.error or ValueError(f'vocab_size={vocab_size}: {_sentence(e)}') from None
    return out.getvalue()


class _Lines(Iterator[str]):
  """Lines of the texts that are not blank, cut at 2000 characters.

  Keeps the error of a failing iterator, of which the library keeps only the words.
  """

  def __init__(self, texts: Iterable[str]):
    self.error: Exception | None = None
    self._lines = (
      line[i : i + _LINE]
      for text in texts
      for line in text.split('\n')
      if line.strip()
      for i in range(0, len(line), _LINE)
    )

  def __next__(self) -> str:
    try:
      return next(self._lines)
    except StopIteration:
      raise
    except Exception as e:
      self.error = e
      raise


def _import():
  try:
    import google.protobuf  # noqa: F401
    import sentencepiece

    return sentencepiece
  except ImportError as e:
    raise kinds.Unsupported(
      f"tokenizer sentencepiece needs the module {e.name}: pip install 'lmjax[sentencepiece]'"
    ) from None


def _parse(data: bytes, path: str):
  from google.protobuf.message import DecodeError
  from sentencepiece import sentencepiece_model_pb2 as pb

  try:
    model = pb.ModelProto.FromString(data)
  except DecodeError:
    model = pb.ModelProto()
  if not model.pieces or not (model.HasField('trainer_spec') and model.HasField('normalizer_spec')):
    raise ValueError(f'{path} is not a SentencePiece .model nor a tokenizer.bin, or it is cut off')
  return model


def _specials(model) -> dict[str, int | None]:
  """bos, eos and pad: the pieces that the model names so."""
  markers, spec = _markers(model), model.trainer_spec
  return {
    'bos': markers.get(spec.bos_piece),
    'eos': markers.get(spec.eos_piece),
    'pad': markers.get(spec.pad_piece),
  }


def _markers(model) -> dict[str, int]:
  """The pieces that are not found from statistics: control and user-defined ones."""
  return {p.piece: i for i, p in enumerate(model.pieces) if p.type in (p.CONTROL, p.USER_DEFINED)}


def _mask(model, name: str | None, path: str) -> int | None:
  """The id of the mask; a named one that the model lacks is added."""
  markers = _markers(model)
  if name is None:
    return None
  if name == 'auto':
    return next((markers[n] for n in MASKS if n in markers), None)
  if name in markers:
    return markers[name]
  if not name or any(p.piece == name for p in model.pieces):
    raise ValueError(
      f'mask={name!r} is an ordinary piece of {path}; '
      'name a control piece, or one that the model does not have'
    )
  model.pieces.add(piece=name, score=0.0, type=model.pieces[0].CONTROL)
  return len(model.pieces) - 1


def _hide(model, specials: Sequence[int | None]):
  """Makes specials control pieces: text gives user-defined ones, but never control pieces."""
  for i in specials:
    if i is not None:
      model.pieces[i].type = model.pieces[i].CONTROL


def _sentence(e: Exception) -> str:
  """The last line of the library's message, without its source position."""
  return str(e).strip().splitlines()[-1].split('] ')[-1].strip().rstrip('.') or type(e).__name__
