"""Rows that score a text: which tokens the model reads and which of them count."""

from typing import Callable, NamedTuple, Sequence

import numpy as np

from lmjax import kinds


class Window(NamedTuple):
  """Inputs are tokens[:-1]; the last `scored` of tokens[1:] are scored, as those of request
  `owner`. source: for the encoder of a model that has one; prefix: how many first tokens all may
  see.
  """

  owner: int
  tokens: np.ndarray
  scored: int
  source: Sequence[int] | None = None
  prefix: int = 0


def rolling_windows(owner: int, stream: np.ndarray, length: int, stride: int) -> list[Window]:
  """Windows over stream[1:], each token scored in exactly one of them."""
  out, done = [], 1  # stream[done] is the next token to score
  start = 0
  while done < len(stream):
    stop = min(start + length + 1, len(stream))
    out.append(Window(owner, stream[start:stop], stop - done))
    done, start = stop, start + stride
  return out


def tail_windows(owner: int, stream: np.ndarray, scored: int, length: int) -> list[Window]:
  """Windows that score the last `scored` tokens, with as much before them as fits.

  One window where they fit; longer ones in pieces of half the length, so that each keeps half of it
  as context.
  """
  piece = scored if scored <= length else max(1, length // 2)
  out, done = [], len(stream) - scored
  while done < len(stream):
    stop = min(done + piece, len(stream))
    out.append(Window(owner, stream[max(0, stop - length - 1) : stop], stop - done))
    done = stop
  return out


def asked_windows(
  owner: int,
  stream: np.ndarray,
  scored: int,
  length: int,
  piece: int,
  prompt: Callable[[Sequence[int]], kinds.Prompt],
) -> list[Window]:
  """Windows that score the last `scored` tokens, each behind a prompt of the tokens before it.

  Pieces of at most `piece` tokens, one after another; the prompt of each has all that stands before
  it, as far as both together have at most `length` tokens.
  """
  out, done = [], len(stream) - scored
  while done < len(stream):
    stop = min(done + piece, len(stream))
    asked = prompt(stream[max(0, stop - length) : done].tolist())
    tokens = np.concatenate([asked.text, stream[done:stop]]).astype(np.int32)
    out.append(Window(owner, tokens, stop - done, asked.source, asked.prefix))
    done = stop
  return out
