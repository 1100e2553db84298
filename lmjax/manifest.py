"""The manifest of a checkpoint: what was saved, file by file and array by array.

Orbax says whether it finished a save, but not whether the files are still what it wrote, and it
casts dtypes silently on restore. `manifest.json` therefore lists every array (shape, dtype) and
every file (size, SHA-256). It is written last and atomically, so its presence marks a complete
checkpoint, and it is the only licence to delete: what it does not list stays.
"""

import concurrent.futures
import hashlib
import json
import logging
import os
import time
from typing import Any, Mapping

from etils import epath

NAME = 'manifest.json'
DOOMED = 'manifest.deleting.json'
FORMAT = 1
_CHUNK = 1 << 22
_LOG = logging.getLogger(__name__)


class ManifestError(ValueError):
  """A manifest that is missing, unreadable or not ours; the message names the file."""


def write(
  step_dir: Any,
  step: int,
  *,
  leaves: Mapping[str, Any],
  scores: Mapping[str, float],
  empty: list[str] = (),
  version: str = '',
) -> dict[str, Any]:
  """Hashes every file of a finished save and writes the manifest, last and atomically."""
  step_dir = epath.Path(step_dir)
  names = sorted(n for n in walk(step_dir) if n not in (NAME, DOOMED))
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    entries = list(pool.map(lambda n: _digest(step_dir / n), names))
  body = {
    'format': FORMAT,
    'lmjax': version,
    'step': step,
    'time': time.time(),
    'scores': dict(scores),
    'leaves': dict(leaves),
    'empty': list(empty),
    'files': dict(zip(names, entries)),
  }
  put(step_dir, body)
  return body


def put(step_dir: Any, body: Mapping[str, Any]) -> None:
  """Writes a manifest through a rename; `self` is the checksum of all that it says."""
  step_dir = epath.Path(step_dir)
  body = {k: v for k, v in body.items() if k != 'self'}
  partial = step_dir / f'{NAME}.partial'
  partial.write_text(json.dumps(body | {'self': _self_digest(body)}, indent=1))
  partial.replace(step_dir / NAME)


def read(step_dir: Any) -> dict[str, Any]:
  """The manifest of a step directory; raises ManifestError when there is none that can be
  trusted.
  """
  path = epath.Path(step_dir) / NAME
  try:
    body = json.loads(path.read_text())
    digest = body.pop('self')
  except FileNotFoundError:
    raise ManifestError(f'{path} does not exist: the save did not finish') from None
  except (ValueError, KeyError, TypeError, AttributeError, OSError) as e:
    raise ManifestError(f'{path} cannot be read ({type(e).__name__}: {e})') from None
  if digest != _self_digest(body):
    raise ManifestError(f'{path} does not match its own checksum')
  if body.get('format') != FORMAT:
    raise ManifestError(
      f'{path} has format {body.get("format")!r}; this version reads format {FORMAT}'
    )
  unsafe = [n for n in body['files'] if n.startswith('/') or '..' in n.split('/')]
  if unsafe:
    raise ManifestError(f'{path} lists a file outside its directory: {unsafe[0]!r}')
  return body


def verify(step_dir: Any, *, checksums: bool = True) -> list[str]:
  """Problems of a checkpoint, each naming its file; an empty list means that it is what was saved.

  Without `checksums` only presence and sizes are looked at. Files that the manifest does not list
  are logged, no problem.
  """
  step_dir = epath.Path(step_dir)
  try:
    listed = read(step_dir)['files']
  except ManifestError as e:
    return [str(e)]
  out = [p for name, entry in listed.items() if (p := _check_size(step_dir / name, entry))]
  if not checksums:
    return out
  sized = [n for n in listed if not any(p.startswith(f'{step_dir / n} ') for p in out)]
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    found = list(pool.map(lambda n: _digest(step_dir / n), sized))
  out += [
    f'{step_dir / n} does not match its checksum' for n, f in zip(sized, found) if f != listed[n]
  ]
  extra = sorted(set(walk(step_dir)) - set(listed) - {NAME})
  if extra:
    _LOG.info('%s holds files that its manifest does not list: %s', step_dir, ', '.join(extra[:5]))
  return out


def remove(step_dir: Any) -> None:
  """Deletes the files that the manifest lists, then the manifest; foreign files and their
  directories stay.

  The manifest is renamed first: a kill half-way leaves a directory that is never offered and can be
  finished by calling again.
  """
  step_dir = epath.Path(step_dir)
  doomed = step_dir / DOOMED
  if (step_dir / NAME).exists():
    read(step_dir)
    (step_dir / NAME).replace(doomed)
  for name in json.loads(doomed.read_text())['files']:
    (step_dir / name).unlink(missing_ok=True)
  doomed.unlink()
  _remove_empty(step_dir)


def walk(root: epath.Path, prefix: str = '') -> list[str]:
  """Relative paths of the files below a directory; links are listed, never followed into."""
  out = []
  for child in (root / prefix).iterdir():
    name = f'{prefix}{child.name}'
    out += walk(root, f'{name}/') if child.is_dir() and not os.path.islink(child) else [name]
  return out


def _remove_empty(directory: epath.Path) -> None:
  for child in list(directory.iterdir()):
    if child.is_dir() and not os.path.islink(child):
      _remove_empty(child)
  if not list(directory.iterdir()):
    directory.rmdir()


def _digest(path: epath.Path) -> dict[str, Any]:
  digest, size = hashlib.sha256(), 0
  with path.open('rb') as f:
    while chunk := f.read(_CHUNK):
      digest.update(chunk)
      size += len(chunk)
  return {'size': size, 'sha256': digest.hexdigest()}


def _check_size(path: epath.Path, entry: Mapping[str, Any]) -> str | None:
  try:
    size = path.stat().length
  except FileNotFoundError:
    return f'{path} is missing'
  return None if size == entry['size'] else f'{path} has {size} bytes, {entry["size"]} were saved'


def _self_digest(body: Mapping[str, Any]) -> str:
  return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
