"""What sources of JSON objects share: reading one, and the text in one of its fields."""

import json

from lmjax.registry import nearest


def parse(line: bytes, where: str) -> dict:
  """One JSON object. Raises ValueError naming the place."""
  try:
    record = json.loads(line.decode('utf-8'))
  except UnicodeDecodeError as e:
    raise ValueError(
      f'{where}: not UTF-8 text: byte 0x{line[e.start]:02x} at offset {e.start} of the line'
    ) from None
  except (ValueError, RecursionError) as e:
    raise ValueError(f'{where}: not JSON: {e}') from None
  if not isinstance(record, dict):
    raise ValueError(
      f'{where}: a JSON object such as {{"text": ...}} is expected, not {type(record).__name__}'
    )
  return record


def text_of(record: dict, field: str, where: str) -> str:
  """The text in a field. Raises ValueError naming the place and the fields there are."""
  if field not in record:
    raise ValueError(
      f'{where}: no field {field!r}{nearest(field, record)} fields: {", ".join(map(repr, record))}'
    )
  text = record[field]
  if not isinstance(text, str):
    raise ValueError(f'{where}: field {field!r} holds {type(text).__name__}, text is expected')
  try:
    text.encode('utf-8')
  except UnicodeEncodeError as e:
    raise ValueError(
      f'{where}: field {field!r} holds a lone surrogate at character {e.start}, which is not text'
    ) from None
  return text
