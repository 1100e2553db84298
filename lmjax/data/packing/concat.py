"""Concatenate and cut: documents end to end, one stream, cut every row_tokens (GPT-2, GPT-3).

Each epoch the documents lie in a new order on a ring of N tokens; the ring is cut into ceil(N / T)
rows of T inputs from a new random start, so that one huge document gives other windows each epoch.
Every row holds `lookahead` further tokens, the targets of its last inputs. Every token is an input
exactly once an epoch; the last row is short unless T divides N (and holds one target more). Where a
row passes the end of the ring, the document begun there is a document of its own.

shuffle=False keeps documents and rows in the order of the source, from its first token.

Source: Radford et al., 2019 (GPT-2); Brown et al., 2020 (arXiv:2005.14165), section 2.3 and
appendix B.
"""

import dataclasses

from lmjax.data import permutation
from lmjax.data.packing import _rows
from lmjax.registry import register


@register('pack')
@dataclasses.dataclass(frozen=True)
class Concat:
  """Documents end to end in one stream, cut into full rows."""

  shuffle: bool = True

  def plan(
    self, lengths, row_tokens: int, lookahead: int, seed: int, epoch: int
  ) -> _rows.StreamRows:
    """Rows of an epoch, as many in each. Raises ValueError when the documents do not fill one
    row.
    """
    documents = _rows.full(lengths)
    total = int(lengths.sum())
    if total < row_tokens + lookahead:
      raise ValueError(
        f'{total} tokens do not fill one row of {row_tokens} + {lookahead}; use more text, shorter '
        'rows '
        '(config.data.length) or pack="pad()"'
      )
    if not self.shuffle:
      return _rows.StreamRows(
        documents, lengths, row_tokens=row_tokens, lookahead=lookahead, circular=True
      )
    first = permutation.key(seed, 'start', epoch) % total
    rows = -(-total // row_tokens)
    return _rows.StreamRows(
      _rows.shuffled(documents, seed, epoch),
      lengths,
      row_tokens=row_tokens,
      lookahead=lookahead,
      first=first,
      circular=True,
      row_order=_rows.row_order(rows, seed, epoch),
    )
