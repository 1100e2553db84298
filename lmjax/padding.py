"""Ragged texts as arrays, their shapes rounded up so that few programs are compiled."""

from typing import NamedTuple, Sequence

import numpy as np

from lmjax import kinds
from lmjax.data import bins
from lmjax.parallel import shard


def power_of_two(n: int, least: int = 1) -> int:
  """`least` times the smallest power of two that makes at least n."""
  return least << max(0, -(-n // least) - 1).bit_length()


def least_rows() -> int:
  """Rows that a batch has at least: what the current mesh divides it over."""
  return shard.sharing(shard.mesh().shape)


def left_padded(
  prompts: Sequence[Sequence[int]], columns: int, rows: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(tokens, segments, positions), each int32 (rows, columns): prompts at the right end, segment 0
  before them and in spare rows.
  """
  tokens = np.zeros((rows, columns), np.int32)
  segments, positions = np.zeros_like(tokens), np.zeros_like(tokens)
  for r, p in enumerate(prompts):
    if len(p):
      tokens[r, -len(p) :], segments[r, -len(p) :], positions[r, -len(p) :] = (
        p,
        1,
        np.arange(len(p)),
      )
  return tokens, segments, positions


class Packed(NamedTuple):
  """Several texts to a row, each with positions of its own, int32 (R, P); where text b is: its row
  and its segment there, int32 (B,), segment -1 for none.
  """

  tokens_RP: np.ndarray
  segments_RP: np.ndarray
  positions_RP: np.ndarray
  rows_B: np.ndarray
  marks_B: np.ndarray


def packed(texts: Sequence[Sequence[int]], columns: int, rows: int) -> Packed | None:
  """Texts in as few rows as best fit needs, the longest first; None where that saves no row of
  `rows` (Zhao et al., 2024, arXiv:2404.09529).
  """
  sizes = np.array([len(t) for t in texts])
  order = [i for i in np.argsort(-sizes, kind='stable') if sizes[i]]
  found, count = bins.best_fit(sizes[order], columns)
  fewer = power_of_two(max(1, count), least_rows())
  if fewer >= rows:
    return None
  out = Packed(
    *(np.zeros((fewer, columns), np.int32) for _ in range(3)),
    np.zeros(rows, np.int32),
    np.full(rows, -1, np.int32),
  )
  for i, r in zip(order, found):
    start = np.count_nonzero(out.segments_RP[r])
    span = slice(start, start + sizes[i])
    mark = out.segments_RP[r].max() + 1
    out.tokens_RP[r, span], out.segments_RP[r, span] = texts[i], mark
    out.positions_RP[r, span] = np.arange(sizes[i])
    out.rows_B[i], out.marks_B[i] = r, mark
  return out


def source(texts: Sequence[Sequence[int]], columns: int, rows: int) -> kinds.Text:
  """Texts for an encoder, each at the left end; segment 0 behind them and in spare rows."""
  tokens = np.zeros((rows, columns), np.int32)
  for r, text in enumerate(texts):
    tokens[r, : len(text)] = text
  sizes = np.array([len(t) for t in texts] + [0] * (rows - len(texts)))
  places = np.arange(columns, dtype=np.int32)
  segments = (places < sizes[:, None]).astype(np.int32)
  return kinds.Text(tokens, places * segments, segments)


def tails(prompts: Sequence[Sequence[int]], columns: int, batch: int) -> np.ndarray:
  """The last tokens of each prompt, -1 before its first; 0 in spare rows."""
  out = np.full((batch, columns), -1, np.int32)
  out[len(prompts) :] = 0
  for r, p in enumerate(prompts):
    out[r, -len(p) :] = p[-columns:]
  return out
