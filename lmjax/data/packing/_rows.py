"""What packings share: row plans, and documents cut into windows."""

import numpy as np

from lmjax.data import permutation


class StreamRows:
  """Rows cut from one stream of documents laid end to end, as a `kinds.RowPlan`.

  Row i covers the stream's tokens [first + i T, first + (i + 1) T) as inputs, and up to `lookahead`
  more as targets. The last row is short unless T divides the stream; it holds one target more,
  since further ones would stand where inputs are read and so be inputs twice. With `circular` the
  stream is a ring, else it ends.
  """

  def __init__(
    self,
    documents,
    lengths,
    *,
    row_tokens: int,
    lookahead: int,
    first: int = 0,
    circular: bool = False,
    row_order=None,
  ):
    """Args: documents: their numbers in stream order. lengths: of all documents. row_order:
    Permutation of rows or None.
    """
    self._documents = documents
    self._ends = np.cumsum(lengths[documents])
    self._starts = self._ends - lengths[documents]
    self._total = int(self._ends[-1]) if len(documents) else 0
    self._row, self._lookahead, self._first, self._circular = row_tokens, lookahead, first, circular
    self._order = row_order
    self._rows = -(-self._total // row_tokens)

  def __len__(self) -> int:
    return self._rows

  def __getitem__(self, i: int) -> np.ndarray:
    if not 0 <= i < self._rows:
      raise IndexError(f'row {i} is outside 0 ... {self._rows - 1}')
    i = i if self._order is None else self._order[i]
    inputs = min(self._row, self._total - i * self._row)
    start = self._first + i * self._row
    stop = start + inputs + (self._lookahead if inputs == self._row else min(self._lookahead, 1))
    if not self._circular:
      return self._spans(start, min(stop, self._total))
    start, stop = start % self._total, start % self._total + stop - start
    if stop <= self._total:
      return self._spans(start, stop)
    return np.concatenate([self._spans(start, self._total), self._spans(0, stop - self._total)])

  def _spans(self, start: int, stop: int) -> np.ndarray:
    """(document, start, stop) of the stream's tokens [start, stop)."""
    a = int(np.searchsorted(self._ends, start, 'right'))
    b = int(np.searchsorted(self._starts, stop, 'left'))
    out = np.empty((b - a, 3), np.int64)
    out[:, 0] = self._documents[a:b]
    np.maximum(start - self._starts[a:b], 0, out=out[:, 1])
    np.minimum(stop, self._ends[a:b], out=out[:, 2])
    out[:, 2] -= self._starts[a:b]
    return out


class ListedRows:
  """Rows given as pieces: piece k, a window (document, start, stop), lies in row `rows[k]`; row
  order by a permutation.
  """

  def __init__(self, pieces, rows, count: int, row_order=None):
    order = np.argsort(rows, kind='stable')
    self._pieces, self._order = pieces[order], row_order
    self._bounds = np.searchsorted(rows[order], np.arange(count + 1))

  def __len__(self) -> int:
    return len(self._bounds) - 1

  def __getitem__(self, i: int) -> np.ndarray:
    if not 0 <= i < len(self):
      raise IndexError(f'row {i} is outside 0 ... {len(self) - 1}')
    i = i if self._order is None else self._order[i]
    return self._pieces[self._bounds[i] : self._bounds[i + 1]]


def full(lengths) -> np.ndarray:
  """Numbers of the documents that are not empty."""
  return np.flatnonzero(lengths > 0)


def shuffled(documents, seed: int, epoch: int) -> np.ndarray:
  """Documents in this epoch's order."""
  order = permutation.Permutation(len(documents), permutation.key(seed, 'documents', epoch))
  return documents[order[np.arange(len(documents))]]


def row_order(rows: int, seed: int, epoch: int) -> permutation.Permutation:
  return permutation.Permutation(rows, permutation.key(seed, 'rows', epoch))


def windows(documents, lengths, *, row_tokens: int, lookahead: int) -> np.ndarray:
  """(pieces, 3): each document whole, or cut into windows of row_tokens + lookahead tokens, one
  every row_tokens.

  Consecutive windows share `lookahead` tokens, so that every token is an input with its successor
  in one window and in no other. A document stays whole up to row_tokens + 1 tokens (row_tokens
  without lookahead): its last needs no target.
  """
  sizes = lengths[documents]
  counts = np.maximum(-(-(sizes - min(lookahead, 1)) // row_tokens), 1)
  which = np.repeat(np.arange(len(documents)), counts)
  starts = (np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)) * row_tokens
  stops = np.minimum(starts + row_tokens + lookahead, sizes[which])
  return np.stack([documents[which], starts, stops], axis=1).astype(np.int64)
