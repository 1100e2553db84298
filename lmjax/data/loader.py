"""From a plan to batches: any step at random access, or an iterator that reads ahead.

A batch is a dict of int32 arrays, R rows of this host and L = row_tokens + lookahead:
  tokens (R, L)     ids; 0 where there is padding
  segments (R, L)   1, 2, ... for each document of the row, 0 for padding (all 1 where documents
                    are not masked)
  positions (R, L)  from 0 within each document of the row (within the row where documents are not
                    masked)
  source (R,)       index of the row's source, -1 for a row of padding
"""

import sys
from typing import Any, Callable, Iterator, Sequence

import numpy as np

from lmjax.data import permutation


class Loader:
  """Batches of a plan for one host: `loader[step]`, `loader.iterate(first_step)`. Safe to call from
  several threads.
  """

  def __init__(
    self,
    plan: Any,
    *,
    transforms: Sequence[tuple[str, Callable]] = (),
    host_index: int = 0,
    host_count: int = 1,
    documents_masked: bool = True,
  ):
    """
    Args:
      plan: a `plan.Plan` or `plan.Sequential`.
      transforms: (name, function (row dict, seed) -> row dict), applied in order. The seed depends
        on the plan's seed,
        the name and the row's place in the whole stream, hence not on hosts.
      host_index, host_count: this host loads a contiguous part of the global rows.
      documents_masked: False lets attention and targets cross from document to document (as in
        GPT-2).

    Raises:
      ValueError: when the global rows do not divide by the hosts.
    """
    if plan.rows_per_step % host_count:
      raise ValueError(f'{plan.rows_per_step} rows a step do not divide over {host_count} hosts')
    assert 0 <= host_index < host_count, (host_index, host_count)
    self.plan, self.documents_masked = plan, documents_masked
    self._transforms = tuple(transforms)
    self._rows = plan.rows_per_step // host_count
    self._first = host_index * self._rows
    self._length = plan.row_tokens + plan.lookahead
    self._places = np.arange(self._length, dtype=np.int32)

  def __getitem__(self, step: int) -> dict[str, np.ndarray]:
    """The host's part of the batch of a step."""
    first = step * self.plan.rows_per_step + self._first
    batch = {
      k: np.zeros((self._rows, self._length), np.int32) for k in ('tokens', 'segments', 'positions')
    }
    batch['source'] = np.full(self._rows, -1, np.int32)
    for i in range(self._rows):
      row = self.plan.row(first + i)
      batch['source'][i] = row.source
      self._fill({k: v[i] for k, v in batch.items() if k != 'source'}, row)
    batch = self._transformed(batch, first) if self._transforms else batch
    return batch if self.documents_masked else _joined(batch)

  def _fill(self, out: dict[str, np.ndarray], row):
    """Writes the spans of a row one after another."""
    if not len(row.spans):
      return
    store, at = self.plan.stores[row.source], 0
    tokens, offsets = store.tokens, store.offsets
    for k, (document, start, stop) in enumerate(row.spans.tolist()):
      end, base = at + stop - start, int(offsets[document])
      out['tokens'][at:end] = tokens[base + start : base + stop]
      out['segments'][at:end] = k + 1
      out['positions'][at:end] = self._places[: stop - start]
      at = end

  def _transformed(self, batch, first: int):
    rows = []
    for i in range(self._rows):
      row = {k: v[i] for k, v in batch.items()}
      for name, function in self._transforms:
        row = function(row, permutation.key(self.plan.seed, 'transform', name, first + i))
      rows.append(row)
    return {k: np.stack([r[k] for r in rows]) for k in rows[0]}

  def documents(self, step: int) -> list[dict[str, Any]]:
    """What the global batch of a step was made of, as JSON values: a record of a bad step can name
    its documents.
    """
    return [
      dict(source=self.plan.names[r.source], epoch=r.epoch, row=r.row, spans=r.spans.tolist())
      for r in self.plan.rows(step)
      if r.source >= 0
    ]

  def iterate(
    self,
    first_step: int = 0,
    *,
    order: Callable[[int], int] = lambda step: step,
    threads: int = 2,
    prefetch: int = 4,
  ) -> Iterator[dict[str, np.ndarray]]:
    """Batches from `first_step` on, read ahead by grain: without end for a Plan, to its last step
    for a Sequential.

    Args: order: which batch stands at a step. threads: that read. prefetch: batches ready ahead of
      use. grain is imported here, since that takes seconds.
    """
    import grain

    steps = _Steps(self, first_step, order)
    dataset = grain.MapDataset.source(steps) if len(steps) else None
    if dataset is None:
      return iter(())
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    return iter(dataset.to_iter_dataset(options))


def _joined(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The documents of each row taken as one; done last, so that transforms still see their
  bounds.
  """
  segments = (batch['segments'] > 0).astype(np.int32)
  if np.any(np.diff(segments, axis=1) > 0):  # causal models look at no segments then
    raise ValueError(
      'config.data.mask_documents=False: a row has padding in front of its tokens; padding is '
      'expected behind them (a transform may have put it there), or mask_documents=True'
    )
  positions = np.arange(segments.shape[1], dtype=np.int32) * segments
  return {**batch, 'segments': segments, 'positions': positions}


class _Steps:
  """The steps from one on, as a grain source."""

  def __init__(self, loader: Loader, first_step: int, order: Callable[[int], int]):
    self._loader, self._first, self._order = loader, first_step, order
    ends = hasattr(loader.plan, '__len__')
    self._len = max(0, len(loader.plan) - first_step) if ends else sys.maxsize

  def __len__(self) -> int:
    return self._len

  def __getitem__(self, i: int):
    return self._loader[self._order(self._first + int(i))]
