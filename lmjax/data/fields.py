"""The fields of a row, in the order of the pipeline: what the plan fills, what transforms make of
it, what the objective reads.

  tokens, segments, positions  int32 (L,), always
  source                       int32 (), index of the row's source, -1 for a row of padding
  weights                      float32 (L,), what each token counts as a target; 1 where absent
  prefix                       int32 (L,), 1 for tokens that their whole document may see
  encoder_tokens, encoder_segments, encoder_positions
                               int32 (E,), what the encoder of an encoder-decoder reads
"""

from typing import Any, Iterable, Mapping, Sequence

import jax
import numpy as np

Fields = Mapping[str, jax.ShapeDtypeStruct]

TEXT = ('tokens', 'segments', 'positions')
DTYPES = {'weights': np.float32}  # all others are int32


def field(name: str, *shape: int) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, DTYPES.get(name, np.int32))


def text(length: int, prefix: str = '') -> dict[str, jax.ShapeDtypeStruct]:
  """The three fields of a text of `length` tokens."""
  return {prefix + k: field(k, length) for k in TEXT}


def of(length: int, transforms: Sequence[tuple[str, Any]], reads: Iterable[str] = ()):
  """Fields of a row of the batch: rows of `length` tokens after these transforms, and what the
  objective reads beside them. Raises ValueError where nothing makes a field that it reads.
  """
  made = {**text(length), 'source': field('source')}
  for _, transform in transforms:
    if hasattr(transform, 'layout'):
      made = transform.layout(made)
  missing = sorted(set(reads) - set(made))
  if missing:
    raise ValueError(
      f'the objective reads {", ".join(missing)}, which no transform makes; there are '
      f'{", ".join(made)}'
    )
  return {k: s for k, s in made.items() if k != 'source' or 'source' in reads}


def batch(rows: int, fields: Fields) -> dict[str, jax.ShapeDtypeStruct]:
  """The fields of a batch, abstract."""
  return {k: jax.ShapeDtypeStruct((rows, *s.shape), s.dtype) for k, s in fields.items()}


def ones(rows: int, fields: Fields) -> dict[str, np.ndarray]:
  """A batch to make variables with."""
  return {k: np.ones((rows, *s.shape), s.dtype) for k, s in fields.items()}
