"""Ragged texts as arrays, their shapes rounded up so that few programs are compiled."""

import math
from typing import Sequence

import numpy as np

from lmjax import kinds
from lmjax.parallel import shard


def power_of_two(n: int, least: int = 1) -> int:
  """`least` times the smallest power of two that makes at least n."""
  return least << max(0, -(-n // least) - 1).bit_length()


def least_rows() -> int:
  """Rows that a batch has at least: what the current mesh divides it over."""
  mesh = shard.mesh()
  return math.prod(mesh.shape.get(a, 1) for a in shard.RULES['batch']) if not mesh.empty else 1


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
