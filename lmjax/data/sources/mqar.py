"""Multi-query associative recall: keys are bound to values, then each key is asked for once.

  k_1 v_1 ... k_P v_P  k_s(1) v_s(1) ... k_s(P) v_s(P),   s a permutation of 1 ... P

A document is 4 `pairs` ids. Its keys are different ids of 0 ... keys - 1, its values different ids
of the `values` behind them, all choices uniform; ids mean nothing from document to document, so
that answers can be had from the document alone. Which tokens are answers says transform
`answers()`; any tokenizer of at least keys + values ids will do, as `bytes(specials=False)` or
`extended(inner=bytes(specials=False), extra=N)`. The packs `best_fit()` and `pad()` keep documents
whole.

Document i is a function of (seed, i) in closed form. Training and held-out data differ in their
seeds; two documents are equal by chance alone, one in K!/(K - P)! V!/(V - P)! P!.

Arora et al., 2023 (arXiv:2312.04927), section 4: without its gaps between the queries, which is its
densest case, rows of four tokens a pair, and as next-token prediction.
"""

import dataclasses
import hashlib

import numpy as np

from lmjax.data import permutation
from lmjax.registry import register

MOST = 1 << 20


@register('source', tokens=True)
@dataclasses.dataclass(frozen=True)
class Mqar:
  """Documents of `pairs` keys and values, then each key with its value again, in random order."""

  pairs: int = 16
  documents: int = 16384
  keys: int = 128
  values: int = 128
  seed: int = 0

  @staticmethod
  def check(pairs, documents, keys, values, seed):
    for key, value, least in (
      ('documents', documents, 1),
      ('keys', keys, 1),
      ('values', values, 1),
      ('seed', seed, 0),
    ):
      if value < least or key in ('keys', 'values') and value > MOST:
        most = f' and at most {MOST}' if key in ('keys', 'values') else ''
        raise ValueError(f'{key}={value}: at least {least}{most} is expected')
    if not 1 <= pairs <= min(keys, values):
      raise ValueError(
        f'pairs={pairs}: at least 1 and at most {min(keys, values)} is expected, as many as there '
        f'are keys={keys} and values={values}'
      )

  def document(self, i: int) -> np.ndarray:
    """int32 (4 pairs,)."""
    sizes = self.keys, self.values, self.pairs
    draws = permutation.uniform(permutation.key('mqar', self.seed, i), sum(sizes))
    key, value, asked = (
      np.argsort(part, kind='stable')[: self.pairs]
      for part in np.split(draws, np.cumsum(sizes)[:-1])
    )
    bound = np.stack([key, self.keys + value], axis=1)
    return np.concatenate([bound, bound[asked]]).reshape(-1).astype(np.int32)

  def fingerprint(self) -> str:
    first = self.document(0).astype('<i4').tobytes()
    return hashlib.sha256(repr(self).encode() + first).hexdigest()

  def __iter__(self):
    return map(self.document, range(self.documents))
