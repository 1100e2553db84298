"""Best-fit packing: documents stay whole where they can, and rows are nearly full.

A document longer than a row (row_tokens + 1 tokens, the last being only a target; row_tokens where
the objective needs no lookahead) is cut into windows of row_tokens + lookahead tokens, one every
row_tokens. Then, longest first, each piece goes into the row with the least room that still holds
it, or into a new one (best-fit decreasing: at most 11/9 of the fewest rows, plus a constant). Room
is a whole number below the row's size, so rows are kept by room and the set of rooms in use is one
integer's bits: a piece costs a shift, not a search.

Pieces of equal length change places from epoch to epoch, so that other documents share a row; the
number of rows does not change. shuffle=False packs the same way each epoch, with rows in the order
in which they were opened.

Source: Ding et al., 2024, Fewer Truncations Improve Language Modeling (arXiv:2404.10830); Johnson,
1973 (bound).
"""

import dataclasses

import numpy as np

from lmjax.data import bins
from lmjax.data import permutation
from lmjax.data.packing import _rows
from lmjax.registry import register


@register('pack')
@dataclasses.dataclass(frozen=True)
class BestFit:
  """Whole documents packed best-fit decreasing into rows; only those longer than a row are cut."""

  shuffle: bool = True

  def plan(
    self, lengths, row_tokens: int, lookahead: int, seed: int, epoch: int
  ) -> _rows.ListedRows:
    """Rows of an epoch, as many in each."""
    pieces = _rows.windows(_rows.full(lengths), lengths, row_tokens=row_tokens, lookahead=lookahead)
    if self.shuffle and len(pieces):
      order = permutation.Permutation(len(pieces), permutation.key(seed, 'documents', epoch))
      pieces = pieces[order[np.arange(len(pieces))]]
    sizes = pieces[:, 2] - pieces[:, 1]
    pieces = pieces[np.argsort(-sizes, kind='stable')]
    room = row_tokens + min(lookahead, 1)  # beyond it stand only targets of one long window
    rows, count = bins.best_fit(np.minimum(pieces[:, 2] - pieces[:, 1], room), room)
    order = _rows.row_order(count, seed, epoch) if self.shuffle and count else None
    return _rows.ListedRows(pieces, rows, count, order)
