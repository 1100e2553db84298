"""Spans of noise in a text, as T5 draws them (Raffel et al., 2020, arXiv:1910.10683)."""

import numpy as np


def count(length: int, mean: float, rate: float) -> tuple[int, int]:
  """(tokens of noise, spans): n = round(length rate), s = round(n / mean), each at least 1, so that
  every span and every gap has a token. length is at least 2.
  """
  noise = min(max(1, round(length * rate)), length - 1)
  return noise, min(max(1, round(noise / mean)), noise, length - noise)


def parts(total: int, n: int, draws: np.ndarray) -> np.ndarray:
  """total as an ordered sum of n positive numbers, each such sum as likely: int64 (n,).

  draws: at least total - 1 uniform numbers.
  """
  cuts = np.sort(np.argsort(draws[: total - 1], kind='stable')[: n - 1]) + 1
  return np.diff(np.concatenate([[0], cuts, [total]]))


def bounds(length: int, mean: float, rate: float, draws: np.ndarray) -> list[tuple[int, int]]:
  """[(start, stop)] of the spans, a gap before each and noise at the end. draws: `length` uniform
  numbers.
  """
  noise, spans = count(length, mean, rate)
  noisy = parts(noise, spans, draws[:noise])
  ends = np.cumsum(parts(length - noise, spans, draws[noise:]) + noisy)
  return [(int(e - n), int(e)) for e, n in zip(ends, noisy)]


def split(tokens: np.ndarray, found: list[tuple[int, int]], sentinels):
  """(what is left with a sentinel for each span, the spans with their sentinels in front)."""
  inputs, targets, at = [], [], 0
  for (start, stop), sentinel in zip(found, sentinels, strict=True):
    inputs += [tokens[at:start], [sentinel]]
    targets += [[sentinel], tokens[start:stop]]
    at = stop
  inputs.append(tokens[at:])
  return np.concatenate(inputs).astype(np.int32), np.concatenate(targets).astype(np.int32)
