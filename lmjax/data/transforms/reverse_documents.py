"""Documents read backwards with probability `rate`: the tokens of a span in reverse order,
positions and bounds unchanged.

Training on both directions lessens the reversal curse (a model told that A is B cannot say who B
is).

A document is reversed as far as it lies in the row; its beginning- and end-of-text ids stay where
they are. Conserves tokens: each segment holds the same ids, as often.

Source: Golovneva et al., 2024, Reverse Training to Nurse the Reversal Curse (arXiv:2403.13799):
token reversal, rate 1/2.
"""

import dataclasses
from typing import Any

import numpy as np

from lmjax.data import permutation
from lmjax.registry import register


@register('transform')
@dataclasses.dataclass(frozen=True)
class ReverseDocuments:
  """Reverses the tokens of each document of a row with probability rate."""

  tokenizer: Any
  rate: float = 0.5
  conserves = True

  @staticmethod
  def check(rate):
    if not 0 <= rate <= 1:
      raise ValueError(f'rate={rate}: a probability from 0 to 1 is expected')

  def __call__(self, row, seed: int):
    tokens, segments = row['tokens'].copy(), row['segments']
    bounds = np.flatnonzero(np.diff(segments, prepend=0, append=0))
    draws = permutation.uniform(seed, len(bounds))
    for start, stop, draw in zip(bounds[:-1], bounds[1:], draws):
      if segments[start] > 0 and draw < self.rate:
        start += int(tokens[start] == self.tokenizer.bos)
        stop -= int(stop > start and tokens[stop - 1] == self.tokenizer.eos)
        tokens[start:stop] = tokens[start:stop][::-1]
    return {**row, 'tokens': tokens}
