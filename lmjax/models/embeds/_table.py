"""What embeddings share: a table of rounded-up rows and looking tokens up in it."""

import flax.linen as nn

from lmjax.nn import embedding
from lmjax.registry import LARGEST


class Table(nn.Module):
  """E[token] * scale, E of `vocab` rows rounded up to a multiple."""

  vocab: int
  width: int
  dtype: object
  multiple_of: int = 1
  scale: float = 1.0

  @staticmethod
  def check(multiple_of, **_):
    if multiple_of < 1:
      raise ValueError(f'multiple_of={multiple_of}: a positive number of rows is expected')

  @property
  def rows(self) -> int:
    rows = embedding.round_up(self.vocab, self.multiple_of)
    if rows > LARGEST[int]:
      raise ValueError(
        f'embed: model.vocab={self.vocab} rounded up to multiple_of={self.multiple_of} makes '
        f'{rows} rows, at most {LARGEST[int]} are accepted'
      )
    return rows


def look_up(part: Table, tokens_BT, ctx):
  """(E[token] * scale, E, the bias that forbids the added rows or None)."""
  matrix = embedding.table(part, 'table', part.rows, part.width, 'embed', ctx.scheme, part.dtype)
  x = embedding.look_up(matrix, tokens_BT, part.dtype)
  x = x * part.scale if part.scale != 1 else x
  return x, matrix, embedding.never(part.vocab, part.rows)
