"""What a manifest may say. It comes from outside: types and names are checked before use."""

import re
from typing import Any, Iterator, Mapping

NAMES = ('manifest.json', 'manifest.deleting.json', 'manifest.json.partial')
_MD5 = re.compile(r'[0-9a-f]{32}')
_SHA256, _DTYPE = re.compile(r'[0-9a-f]{64}'), re.compile(r'[a-z][a-z0-9_]*(<\w+>)?')


def wrong(body: Mapping[str, Any], place: str) -> Iterator[str]:
  """What is not as `write` makes it, one sentence each. Only the first counts: later ones rely on
  what earlier ones looked at. `place` is the name of its directory.
  """
  fields = {
    'lmjax': (str, 'a text'),
    'step': (int, 'a whole number'),
    'time': ((int, float), 'a number'),
    'scores': (dict, 'numbers by name'),
    'leaves': (dict, 'shape and dtype by name'),
    'empty': (list, 'a list of names'),
    'files': (dict, 'size and checksum by name'),
  }
  for key, (kind, accepted) in fields.items():
    value = body.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
      yield f'has {key}={short(value)}; {accepted} is accepted'
  if body['step'] < 0 or place.isdigit() and place != str(body['step']):
    yield f'is of step {short(body["step"])}; its directory is {place!r}'
  for name, score in body['scores'].items():
    if not isinstance(score, float) and not (_is_count(score) and score < 2**53):
      yield f'has the score {short(name)}={short(score)}; a number is accepted'
  for name, entry in body['files'].items():
    if not _inside(name):
      yield f'lists a file outside its directory: {short(name)}'
    if not _is_file_entry(entry):
      yield f'lists the file {short(name)} as {short(entry)}; a size and a checksum are accepted'
  yield from _wrong_leaves(body['leaves'], body['empty'])
  versions = body.get('versions', {})
  if not isinstance(versions, dict) or not all(isinstance(v, str) for v in versions.values()):
    yield f'has versions={short(versions)}; texts by name are accepted'


def _wrong_leaves(leaves: Mapping[str, Any], empty: list[Any]) -> Iterator[str]:
  for name, entry in leaves.items():
    if not _is_leaf_entry(entry):
      yield f'lists the array {short(name)} as {short(entry)}; a shape and a dtype are accepted'
  for name in empty:
    if not isinstance(name, str):
      yield f'lists {short(name)} among the empty dictionaries; names are accepted'
  names = {*leaves, *empty}
  for name in (*leaves, *empty):
    parts = name.split('/')
    parents = ('/'.join(parts[:i]) for i in range(1, len(parts)))
    if '' in parts or any(p in names for p in parents):
      yield f'lists {short(name)}, which cannot be a name beside the others'


def _inside(name: str) -> bool:
  """Whether a name stays below the directory on every system, and can be a file's name at all."""
  parts = name.split('/')
  return (
    not {'', '.', '..'} & set(parts)
    and not any(c in name for c in '\\\0:')
    and not any('\ud800' <= c <= '\udfff' for c in name)
    and name not in NAMES
  )


def _is_count(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_file_entry(entry: Any) -> bool:
  if not isinstance(entry, dict) or not _is_count(entry.get('size')):
    return False
  kind, form = ('md5', _MD5) if 'md5' in entry else ('sha256', _SHA256)
  return isinstance(entry.get(kind), str) and bool(form.fullmatch(entry[kind]))


def _is_leaf_entry(entry: Any) -> bool:
  return (
    isinstance(entry, dict)
    and isinstance(entry.get('shape'), list)
    and all(map(_is_count, entry['shape']))
    and isinstance(entry.get('dtype'), str)
    and bool(_DTYPE.fullmatch(entry['dtype']))
    and isinstance(entry.get('impl', ''), str)
  )


def short(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 80 else f'{text[:77]}...'
