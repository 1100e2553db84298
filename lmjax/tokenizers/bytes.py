"""Bytes as tokens: id = byte, 0 ... 255, then bos 256, eos 257, pad 258, mask 259.

Text is its UTF-8 bytes; bytes that are not UTF-8 are encoded all the same. Without specials the
vocabulary is the 256 bytes. Used by ByT5 (Xue et al., 2021, arXiv:2105.13626) and MEGABYTE (Yu et
al., 2023, arXiv:2305.07185); their numbering of the specials differs.
"""

from typing import Sequence

import numpy as np

from lmjax.registry import register
from lmjax.tokenizers import _base


@register('tokenizer', lossless=True)
class Bytes:
  """UTF-8 bytes as ids; `specials=False` leaves 256 ids and no bos, eos, pad or mask."""

  def __init__(self, specials: bool = True):
    self.vocab_size = 260 if specials else 256
    self.bos, self.eos, self.pad, self.mask = (256, 257, 258, 259) if specials else (None,) * 4

  def encode(self, text: str | bytes) -> np.ndarray:
    """int32 (bytes,). Raises ValueError for half a surrogate pair, which has no UTF-8."""
    return np.frombuffer(_base.utf8(text), np.uint8).astype(np.int32)

  def encode_batch(self, texts: Sequence[str | bytes]) -> list[np.ndarray]:
    return [self.encode(t) for t in texts]

  def decode_bytes(self, ids: Sequence[int]) -> bytes:
    """The bytes; specials are skipped. Raises ValueError for ids outside the vocabulary."""
    ids = _base.check_ids(ids, self.vocab_size)
    return ids[ids < 256].astype(np.uint8).tobytes()

  def decode(self, ids: Sequence[int]) -> str:
    """The text; a byte that is not UTF-8 becomes U+FFFD."""
    return self.decode_bytes(ids).decode('utf-8', errors='replace')

  def fingerprint(self) -> str:
    return _base.digest('bytes', self.vocab_size)
