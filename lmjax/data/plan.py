"""The order of data: a pure function of (seed, step), decided for all hosts together.

Global row r of the stream belongs to cell r // C of C rows. Inside a cell the rows of each source
are an exact quota, laid out by a Feistel permutation; the row's ordinal within its source is
  ordinal = R_s(cell C) + (rows of s before it in the cell),    R_s(n) = floor(w_s n)
for all sources but the heaviest, which takes the remainder. Weights w_s are whole multiples of
2^-32 and R_s is integer arithmetic, so nothing is counted from the start of the run and nothing
drifts: at every cell's end each source has its share of rows to within one row (the heaviest to
within the number of sources). Epoch and row within it are divmod(ordinal, rows of an epoch); which
documents a row holds is the packing's plan of that epoch.

Hosts, restarts and meshes do not enter: they only choose which rows of `rows(step)` they load.
"""

import collections
import copy
import dataclasses
import json
import math
import threading
from typing import Any, NamedTuple, Sequence

import numpy as np

from lmjax.data import permutation
from lmjax.data import store as store_lib
from lmjax.data.packing import _rows

_UNIT = 1 << 32
_VERSION = 1


class Row(NamedTuple):
  """One row: its source (-1: padding), epoch, place in the epoch, and int64 (spans, 3) of
  (document, start, stop).
  """

  source: int
  epoch: int
  row: int
  spans: np.ndarray


@dataclasses.dataclass(frozen=True)
class Piece:
  """A stretch of rows with constant weights, from `first_row` on; `base` rows of each source came
  before.
  """

  first_row: int
  units: tuple[int, ...]  # weights in multiples of 2^-32, of sum 2^32
  base: tuple[int, ...]

  def counts(self, n: int) -> list[int]:
    """Rows of each source among the first n of this piece, n a multiple of the cell."""
    out = [n * u // _UNIT for u in self.units]
    heaviest = self.units.index(max(self.units))
    out[heaviest] += n - sum(out)
    return out


class Plan:
  """The rows of every step of a run."""

  def __init__(
    self,
    stores: Sequence[store_lib.TokenStore],
    *,
    pack: Any,
    row_tokens: int,
    lookahead: int,
    rows_per_step: int,
    seed: int,
    weights: Sequence[float] | None = None,
    names: Sequence[str] | None = None,
  ):
    """
    Args:
      stores: one token store a source. names: of the sources, for messages and records.
      pack: a built pack part. row_tokens: inputs of a row. lookahead: further tokens, the targets
        of the last inputs.
      rows_per_step: rows of a global batch.
      weights: share of the rows that each source gets, positive; they are normalised. None:
        proportional to tokens.
      seed: decides the order of everything.

    Raises:
      ValueError: on weights that are not positive and finite, or a source too small for one row; it
        names the source.
    """
    assert stores and row_tokens > 0 and lookahead >= 0 and rows_per_step > 0
    self.stores, self.pack, self.seed = tuple(stores), pack, int(seed)
    self.names = (
      tuple(names) if names is not None else tuple(f'source_{i}' for i in range(len(stores)))
    )
    self.row_tokens, self.lookahead, self.rows_per_step = row_tokens, lookahead, rows_per_step
    # A heaviest source has at least C / S rows a cell, of which the others' rounding may take S -
    # 1.
    self.cell = max(1024, 1 << math.ceil(math.log2(max(2 * len(stores) ** 2, 1))))
    self._lengths = tuple(s.lengths for s in stores)
    if weights is None:
      weights = [float(len(s.tokens)) for s in stores]
    self.pieces = (Piece(0, _units(self.names, weights), (0,) * len(stores)),)
    self._lock = threading.Lock()
    self._epochs: collections.OrderedDict[tuple[int, int], Any] = collections.OrderedDict()
    self._cells: collections.OrderedDict[tuple[int, int], Any] = collections.OrderedDict()
    self.rows_per_epoch = tuple(self._count(s) for s in range(len(stores)))

  def _count(self, source: int) -> int:
    try:
      rows = len(self._epoch(source, 0))
    except ValueError as e:
      raise ValueError(f'source {self.names[source]}: {e}') from None
    if not rows:
      raise ValueError(f'source {self.names[source]}: there is no text in it')
    return rows

  @property
  def weights(self) -> np.ndarray:
    """Normalised weights of the last piece."""
    return np.array(self.pieces[-1].units) / _UNIT

  def rows(self, step: int) -> list[Row]:
    """The global batch of a step."""
    first = step * self.rows_per_step
    return [self.row(r) for r in range(first, first + self.rows_per_step)]

  def row(self, r: int) -> Row:
    """Global row r of the stream."""
    source, ordinal = self.place(r)
    epoch, row = divmod(ordinal, self.rows_per_epoch[source])
    return Row(source, epoch, row, self._epoch(source, epoch)[row])

  def place(self, r: int) -> tuple[int, int]:
    """(source, ordinal within the source) of global row r, in closed form."""
    if r < 0:
      raise ValueError(f'row {r} of the stream: at least 0 is expected')
    i = max(i for i, p in enumerate(self.pieces) if p.first_row <= r)
    cell, p = divmod(r - self.pieces[i].first_row, self.cell)
    sources, ordinals = self._cell(i, cell)
    return int(sources[p]), int(ordinals[p])

  def counts(self, rows: int) -> list[int]:
    """Rows of each source among the first `rows` of the stream."""
    i = max(i for i, p in enumerate(self.pieces) if p.first_row <= rows)
    piece = self.pieces[i]
    cell, p = divmod(rows - piece.first_row, self.cell)
    inside = np.bincount(self._cell(i, cell)[0][:p], minlength=len(self.stores))
    return [b + n + int(k) for b, n, k in zip(piece.base, piece.counts(cell * self.cell), inside)]

  def reweighted(self, first_row: int, weights: Sequence[float]) -> 'Plan':
    """This plan with other weights from `first_row` on; each source goes on where it was, nothing
    is lost or repeated. Weights that are the same change nothing.
    """
    if first_row < self.pieces[-1].first_row:
      raise ValueError(
        f'first_row={first_row}: weights are already set from row {self.pieces[-1].first_row} on'
      )
    units = _units(self.names, weights)
    if units == self.pieces[-1].units:
      return self
    before = tuple(p for p in self.pieces if p.first_row < first_row)
    return self._of((*before, Piece(first_row, units, tuple(self.counts(first_row)))))

  def beginning(self, piece: Piece) -> 'Plan':
    """This plan from a piece on, which knows what came before; rows further back are not known."""
    return self._of((piece,))

  def _of(self, pieces: tuple[Piece, ...]) -> 'Plan':
    new = copy.copy(self)
    new._lock, new._epochs, new._cells = (
      threading.Lock(),
      self._epochs.copy(),
      collections.OrderedDict(),
    )
    new.pieces = pieces
    return new

  def fingerprint(self) -> str:
    """Of everything that decides the tokens of a step."""
    assert dataclasses.is_dataclass(self.pack), (
      'a pack part is a dataclass, so that its arguments can be read'
    )
    return store_lib.combine(
      _VERSION,
      *(s.fingerprint() for s in self.stores),
      repr(self.pack),
      self.row_tokens,
      self.lookahead,
      self.rows_per_step,
      self.seed,
      self.cell,
      json.dumps([dataclasses.astuple(p) for p in self.pieces]),
    )

  def _cell(self, piece: int, cell: int):
    """(source of each row of the cell, its ordinal within the source)."""

    def make():
      p = self.pieces[piece]
      start, stop = p.counts(cell * self.cell), p.counts((cell + 1) * self.cell)
      quotas = [b - a for a, b in zip(start, stop)]
      assert min(quotas) >= 0, quotas
      order = permutation.Permutation(
        self.cell, permutation.key(self.seed, 'cell', p.first_row, cell)
      )
      sources = np.repeat(np.arange(len(quotas)), quotas)[order[np.arange(self.cell)]]
      ordinals = np.empty(self.cell, np.int64)
      for s, quota in enumerate(quotas):
        ordinals[sources == s] = p.base[s] + start[s] + np.arange(quota)
      return sources, ordinals

    return self._kept(self._cells, (piece, cell), make, limit=8)

  def _epoch(self, source: int, epoch: int):
    def make():
      rows = self.pack.plan(
        self._lengths[source],
        self.row_tokens,
        self.lookahead,
        permutation.key(self.seed, 'source', source),
        epoch,
      )
      if epoch and len(rows) != self.rows_per_epoch[source]:
        raise ValueError(
          f'{self.pack}: {len(rows)} rows in epoch {epoch} of {self.names[source]}, '
          f'{self.rows_per_epoch[source]} in epoch 0; a packing gives the same number in each'
        )
      return rows

    return self._kept(self._epochs, (source, epoch), make, limit=2 * len(self.stores) + 1)

  def _kept(self, cache, key, make, limit: int):
    """Least recently used entries go first; one thread makes an entry while others wait."""
    with self._lock:
      if key not in cache:
        cache[key] = make()
        while len(cache) > limit:
          cache.popitem(last=False)
      cache.move_to_end(key)
      return cache[key]


class Sequential:
  """Every token of the stores once, in order, for evaluation; rows beyond the end have no spans.
  Loaded like a Plan.
  """

  def __init__(
    self,
    stores: Sequence[store_lib.TokenStore],
    *,
    row_tokens: int,
    lookahead: int,
    rows_per_step: int,
    names: Sequence[str] | None = None,
    most: int = 0,
  ):
    """Args: as for `Plan`; most: rows of each store, from its start, 0 takes all. A row that ends a
    store may be short.
    """
    self.stores, self.seed = tuple(stores), 0
    self.names = (
      tuple(names) if names is not None else tuple(f'source_{i}' for i in range(len(stores)))
    )
    self.row_tokens, self.lookahead, self.rows_per_step = row_tokens, lookahead, rows_per_step
    lengths = [s.lengths for s in stores]
    self._plans = [
      _rows.StreamRows(_rows.full(n), n, row_tokens=row_tokens, lookahead=lookahead)
      for n in lengths
    ]
    self._most = most
    self._counts = [min(len(p), most) if most else len(p) for p in self._plans]
    self._ends = np.cumsum(self._counts)

  @property
  def total_rows(self) -> int:
    return int(self._ends[-1])

  def __len__(self) -> int:
    """Steps; the last one is filled up with empty rows."""
    return -(-self.total_rows // self.rows_per_step)

  def rows(self, step: int) -> list[Row]:
    first = step * self.rows_per_step
    return [self.row(r) for r in range(first, first + self.rows_per_step)]

  def row(self, r: int) -> Row:
    if r >= self.total_rows:
      return Row(-1, 0, r, np.zeros((0, 3), np.int64))
    source = int(np.searchsorted(self._ends, r, 'right'))
    row = r - int(self._ends[source]) + self._counts[source]
    return Row(source, 0, row, self._plans[source][row])

  def fingerprint(self) -> str:
    return store_lib.combine(
      _VERSION,
      'sequential',
      *(s.fingerprint() for s in self.stores),
      self.row_tokens,
      self.lookahead,
      self.rows_per_step,
      *([self._most] if self._most else []),
    )


def sequential(
  store: store_lib.TokenStore, row_tokens: int, lookahead: int, *, rows_per_step: int
) -> Sequential:
  """`Sequential` over one store."""
  return Sequential(
    [store], row_tokens=row_tokens, lookahead=lookahead, rows_per_step=rows_per_step
  )


def _units(names, weights) -> tuple[int, ...]:
  """Weights as positive whole multiples of 2^-32 of sum one. Raises ValueError naming the
  source.
  """
  if len(weights) != len(names):
    raise ValueError(f'{len(weights)} weights for {len(names)} sources')
  for name, w in zip(names, weights):
    if not (math.isfinite(w) and w > 0):
      raise ValueError(
        f'weight {w} of source {name}: a positive number is expected; leave out a source that is '
        'not wanted'
      )
  total = math.fsum(weights)
  units = [max(1, round(w / total * _UNIT)) for w in weights]
  units[units.index(max(units))] += _UNIT - sum(units)
  return tuple(units)
