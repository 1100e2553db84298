"""Spans of noise in a text, as T5 draws them (Raffel et al., 2020, arXiv:1910.10683), and rows of
inputs and targets.
"""

from typing import Any

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


def padded(tokens: np.ndarray, size: int) -> dict[str, np.ndarray]:
  """The three fields of a text, padded behind."""
  n, place = len(tokens), np.arange(size, dtype=np.int32)
  out = np.zeros(size, np.int32)
  out[:n] = tokens
  return dict(tokens=out, segments=(place < n).astype(np.int32), positions=place * (place < n))


def source_row(inputs, targets, sizes: tuple[int, int], first: int) -> dict[str, np.ndarray]:
  """A row of an encoder's inputs and a decoder's targets behind a token to start from; sizes: the
  most tokens of both, without that one.
  """
  begin = [first] if len(targets) else []
  text = padded(np.concatenate([begin, targets]), sizes[1] + 1)
  weights = (text['segments'] > 0).astype(np.float32)
  weights[0] = 0
  source = {f'encoder_{k}': v for k, v in padded(inputs, sizes[0]).items()}
  return {**text, 'weights': weights, **source}


def start(tokenizer: Any) -> int:
  """The token that a decoder starts from."""
  return next(i for i in (tokenizer.pad, tokenizer.bos, tokenizer.eos) if i is not None)
