"""Noise: each token becomes, with probability `rate`, an id drawn uniformly from the vocabulary
less bos, eos, pad, mask and extra ids.

Inputs and targets are the same row, so noise is in both: the data are corrupted, as in studies of
dirty pretraining text. (It is no regulariser of the inputs alone.) Special tokens and padding
stay. Does not conserve tokens; bounds, positions and length stay.

Source: the question is that of Ru et al., 2025, Do we really have to filter out random noise in
pre-training data for language models? (arXiv:2502.06604); noise that is independent from token to
token is a simplification of ours.
"""

import dataclasses
import functools
from typing import Any

import numpy as np

from lmjax.data import permutation
from lmjax.registry import register


@register('transform')
@dataclasses.dataclass(frozen=True)
class TokenNoise:
  """Replaces each token by a random one with probability rate, in inputs and targets alike."""

  tokenizer: Any
  rate: float = 0.05
  conserves = False

  @staticmethod
  def check(rate):
    if not 0 <= rate <= 1:
      raise ValueError(f'rate={rate}: a probability from 0 to 1 is expected')

  @functools.cached_property
  def _ids(self) -> tuple[np.ndarray, np.ndarray]:
    """(special ids, all others)."""
    tok = self.tokenizer
    named = [i for i in (tok.bos, tok.eos, tok.pad, tok.mask) if i is not None]
    special = np.array([*named, *getattr(tok, 'extra', ())], np.int32)
    return special, np.setdiff1d(np.arange(tok.vocab_size, dtype=np.int32), special)

  def __call__(self, row, seed: int):
    (special, ordinary), tokens = self._ids, row['tokens']
    draw, which = permutation.uniform(seed, 2 * len(tokens)).reshape(2, -1)
    hit = (draw < self.rate) & (row['segments'] > 0) & ~np.isin(tokens, special)
    return {
      **row,
      'tokens': np.where(hit, ordinary[(which * len(ordinary)).astype(np.int64)], tokens),
    }
