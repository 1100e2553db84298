"""Texts of one or two sentences as rows of tokens, the way encoders are fine-tuned on them.

  bert      [CLS] a [SEP] b [SEP]       roberta   <s> a </s> </s> b </s>

A text too long for the row loses tokens from its end, always the longer one first.
"""

from typing import NamedTuple, Sequence

import numpy as np

from lmjax import kinds

SEPARATORS = dict(bert=1, roberta=2)  # between two sentences


class Marks(NamedTuple):
  """The token before a row and the one behind each sentence, with their names in the tokenizer."""

  cls: int
  sep: int
  names: tuple[str, str]


def marks(tokenizer) -> Marks:
  """[CLS] is bos and [SEP] is eos; one that is absent is the other. Raises kinds.Unsupported where
  both are.
  """
  have = {k: i for k in ('bos', 'eos') if (i := getattr(tokenizer, k)) is not None}
  if not have:
    raise kinds.Unsupported(
      'the tokenizer has neither a bos nor an eos token to mark where sentences begin and end; one '
      'of them is needed to fine-tune'
    )
  cls, sep = ('bos', 'eos') if len(have) == 2 else 2 * tuple(have)
  return Marks(have[cls], have[sep], (cls, sep))


def truncated(sizes: Sequence[int], room: int) -> list[int]:
  """How many tokens of one or two sentences are kept: one after another is taken from the longer,
  from the second among equals.
  """
  if sum(sizes) <= room:
    return list(sizes)
  if len(sizes) == 1:
    return [room]
  if 2 * min(sizes) > room:
    return [room - room // 2, room // 2]
  return [n if n == min(sizes) else room - min(sizes) for n in sizes]


def packed(sentences: Sequence[np.ndarray], m: Marks, length: int, style: str) -> np.ndarray:
  """The row of one or two sentences of ids, int32, at most `length` tokens."""
  between = SEPARATORS[style] if len(sentences) > 1 else 1
  special = 1 + between * (len(sentences) - 1) + 1
  assert length > special, (length, special)
  kept = truncated([len(s) for s in sentences], length - special)
  out = [m.cls]
  for i, (ids, n) in enumerate(zip(sentences, kept)):
    out += [int(t) for t in ids[:n]] + [m.sep] * (between if i + 1 < len(sentences) else 1)
  return np.asarray(out, np.int32)


SHORTEST = 8  # tokens of a row: four marks, and a little of both sentences
