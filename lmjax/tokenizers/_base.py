"""What all tokenizers share: checked ids, checked text, digests."""

import hashlib
import re
from typing import Iterator, Sequence

import numpy as np

_INVALID = re.compile('[\udc80-\udcff]+')


def check_ids(ids: Sequence[int], vocab_size: int) -> np.ndarray:
  """The ids as int64 (tokens,). Raises ValueError for ids outside 0 ... vocab_size - 1."""
  ids = np.asarray(ids)
  if ids.size == 0:
    return np.zeros(0, np.int64)
  if ids.ndim != 1 or ids.dtype.kind not in 'iu':
    raise ValueError(f'ids are one row of whole numbers, got {ids.dtype} of shape {ids.shape}')
  wrong = (ids < 0) | (ids >= vocab_size)
  if wrong.any():
    raise ValueError(
      f'id {ids[wrong][0]} is not in the vocabulary; ids go from 0 to {vocab_size - 1}'
    )
  return ids.astype(np.int64)


def utf8(text: str | bytes) -> bytes:
  """The bytes of a text, or the bytes themselves.

  Raises ValueError for half a surrogate pair and for other types.
  """
  if isinstance(text, bytes):
    return text
  if not isinstance(text, str):
    raise ValueError(f'text is str or bytes, not {type(text).__name__}')
  try:
    return text.encode('utf-8')
  except UnicodeEncodeError as e:
    raise ValueError(
      f'the text is not Unicode: half a surrogate pair, {text[e.start]!r}, at {e.start}'
    ) from None


def valid_text(text: str | bytes) -> str:
  """The text, for tokenizers that know no bytes. Raises ValueError where bytes are not UTF-8."""
  data = utf8(text)
  try:
    return data.decode('utf-8')
  except UnicodeDecodeError as e:
    raise ValueError(
      f'the text is not UTF-8: byte {e.start} is 0x{data[e.start]:02x}; '
      'a lossless tokenizer takes any bytes'
    ) from None


def stretches(text: str | bytes) -> Iterator[str | bytes]:
  """The longest stretches of valid UTF-8, as str, and the invalid bytes between, as bytes."""
  try:
    yield utf8(text).decode('utf-8')
    return
  except UnicodeDecodeError:
    escaped = text.decode('utf-8', errors='surrogateescape')
  at = 0
  for found in _INVALID.finditer(escaped):
    if found.start() > at:
      yield escaped[at : found.start()]
    yield found.group().encode('utf-8', errors='surrogateescape')
    at = found.end()
  if at < len(escaped):
    yield escaped[at:]


def digest(*parts: object) -> str:
  """sha256, in hex, of the parts with their lengths; what is not bytes enters by its repr."""
  out = hashlib.sha256()
  for part in parts:
    data = part if isinstance(part, bytes) else repr(part).encode()
    out.update(len(data).to_bytes(8, 'little') + data)
  return out.hexdigest()
