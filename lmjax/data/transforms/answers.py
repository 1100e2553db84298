"""Only answers count: weight 1 for the value behind a key that its document has bound before, 0 for
all other tokens.

Each document is read as pairs, a key and its value, as those of source `mqar` are. A first pair
binds, and cannot be foretold; each later pair of the same key asks. Tokens stay as they are. It is
part of the task: held-out loss and accuracy are of answers too.

Documents must not be cut between a key and its value: packs `best_fit()` and `pad()`, an even
`data.length`. A key with two values, which is what other cuts look like, is refused.

Arora et al., 2023 (arXiv:2312.04927): what they call hits of associative recall.
"""

import dataclasses

import numpy as np

from lmjax.data import fields as fields_lib
from lmjax.registry import register


@register('transform', task=True)
@dataclasses.dataclass(frozen=True)
class Answers:
  """Weights of targets: 1 for values of keys that were bound before, else 0."""

  length: int
  conserves = True

  def __post_init__(self):
    if self.length % 2:
      raise ValueError(
        f'answers: data.length={self.length}: an even number of tokens is expected, since '
        'documents are pairs'
      )

  def layout(self, fields):
    """With the field `weights`."""
    return {**fields, 'weights': fields_lib.field('weights', *fields['tokens'].shape)}

  def __call__(self, row, seed: int):
    del seed
    tokens, segments, positions = (row[k].astype(np.int64) for k in fields_lib.TEXT)
    at = np.flatnonzero((segments > 0) & (positions % 2 == 1))  # values; their keys are before them
    keys, values = np.stack([segments[at], tokens[at - 1]]), tokens[at]
    _, first, which = np.unique(keys, axis=1, return_index=True, return_inverse=True)
    bound = first[which.reshape(-1)]  # the pair of the same key that came first
    wrong = np.flatnonzero(values != values[bound])
    if len(wrong):
      i = wrong[0]
      raise ValueError(
        f'answers: one document binds key {keys[1, i]} to {values[bound[i]]} and to {values[i]}; '
        'documents of pairs that are not cut between a key and its value are expected, as from '
        "mqar(...) with config.data.pack='best_fit()' or 'pad()'"
      )
    weights = np.zeros(len(tokens), np.float32)
    weights[at[bound < np.arange(len(at))]] = 1
    return {**row, 'weights': weights}
