"""One document a row, padded; those of more than row_tokens + 1 tokens are cut into windows of
row_tokens + lookahead, one every row_tokens.

Wasteful where documents are short, and what most fine-tuning and encoder code does. shuffle=False
keeps the source's order.
"""

import dataclasses

import numpy as np

from lmjax.data.packing import _rows
from lmjax.registry import register


@register('pack')
@dataclasses.dataclass(frozen=True)
class Pad:
  """One document, or window of one, in each row; the rest is padding."""

  shuffle: bool = True

  def plan(
    self, lengths, row_tokens: int, lookahead: int, seed: int, epoch: int
  ) -> _rows.ListedRows:
    """Rows of an epoch, as many in each."""
    pieces = _rows.windows(_rows.full(lengths), lengths, row_tokens=row_tokens, lookahead=lookahead)
    order = _rows.row_order(len(pieces), seed, epoch) if self.shuffle and len(pieces) else None
    return _rows.ListedRows(pieces, np.arange(len(pieces)), len(pieces), order)
