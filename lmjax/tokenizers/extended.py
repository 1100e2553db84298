"""Another tokenizer with `extra` ids behind its own, which no text ever yields: sentinels and mode
tokens for transforms that need some.

  ids of inner are 0 ... n - 1, the extra ones n ... n + extra - 1, `tok.extra` in that order

Decoding writes nothing for them, as for other special ids. T5 adds 100 (Raffel et al., 2020,
arXiv:1910.10683, section 2.1).
"""

from typing import Annotated, Sequence

import numpy as np

from lmjax import registry
from lmjax.registry import register
from lmjax.tokenizers import _base


@register('tokenizer', lossless=lambda a: a['inner'].fact('lossless'))
class Extended:
  """`inner`, and ids that belong to no text."""

  def __init__(self, inner: Annotated[registry.Part, 'tokenizer'] = 'bytes()', extra: int = 128):
    self._inner = inner()
    self._own = self._inner.vocab_size
    self.vocab_size = self._own + extra
    self.extra = tuple(range(self._own, self.vocab_size))
    self.bos, self.eos, self.pad, self.mask = (
      getattr(self._inner, k) for k in ('bos', 'eos', 'pad', 'mask')
    )

  @staticmethod
  def check(inner, extra):
    del inner
    if not 1 <= extra <= 1 << 20:
      raise ValueError(f'extra={extra}: a positive number of ids, at most {1 << 20}, is expected')

  def encode(self, text: str | bytes) -> np.ndarray:
    return self._inner.encode(text)

  def encode_batch(self, texts: Sequence[str | bytes]) -> list[np.ndarray]:
    if hasattr(self._inner, 'encode_batch'):
      return self._inner.encode_batch(texts)
    return [self._inner.encode(t) for t in texts]

  def decode(self, ids: Sequence[int]) -> str:
    """The text; extra ids are skipped. Raises ValueError for ids outside the vocabulary."""
    return self._inner.decode(self._plain(ids))

  def decode_bytes(self, ids: Sequence[int]) -> bytes:
    return self._inner.decode_bytes(self._plain(ids))

  def _plain(self, ids: Sequence[int]) -> np.ndarray:
    ids = _base.check_ids(ids, self.vocab_size)
    return ids[ids < self._own]

  def fingerprint(self) -> str:
    return _base.digest('extended', self._inner.fingerprint(), len(self.extra))
