"""The manifest of a checkpoint: what was saved, file by file and array by array.

Orbax says whether it finished a save, but not whether the files are still what it wrote, and it
casts dtypes silently on restore. `manifest.json` therefore lists every array (shape, dtype) and
every file (size, SHA-256). It is written last and atomically, so its presence marks a complete
checkpoint, and it is the only licence to delete: what it does not list stays.

Of an object in a store it has the MD5 that the store computed and keeps, so that nothing is read
back. (Its CRC-32C says too little: it is the same for all files that end with their own, as do some
of orbax.)

A manifest comes from outside: its types and names are checked before they are used, and no symbolic
link on the way to a listed file is followed.
"""

import concurrent.futures
import hashlib
import json
import os
import time
from typing import Any, Iterable, Iterator, Mapping

from etils import epath

from lmjax import bucket
from lmjax import progress
from lmjax.checkpoint import content

NAME, DOOMED, _PARTIAL = content.NAMES  # a kill while scores were added leaves the last one
FORMAT = 1
_CHUNK = 1 << 22


class ManifestError(ValueError):
  """A manifest that is missing, unreadable or not ours; the message names the file."""


# ------------------------------------------------------------------ writing


def write(
  step_dir: Any,
  step: int,
  *,
  leaves: Mapping[str, Any],
  scores: Mapping[str, float],
  empty: list[str] = (),
  version: str = '',
  versions: Mapping[str, str] | None = None,
) -> dict[str, Any]:
  """Lists every file of a finished save with its checksum, and writes the manifest, last and
  atomically.

  Args:
    version: that of lmjax; `versions` holds those of the other software, by name.
  """
  step_dir = epath.Path(step_dir)
  entries = {n: e for n, e in _entries(step_dir) if n not in (NAME, DOOMED, _PARTIAL)}
  body = {
    'format': FORMAT,
    'lmjax': version,
    'versions': dict(versions or {}),
    'step': step,
    'time': time.time(),
    'scores': dict(scores),
    'leaves': dict(leaves),
    'empty': list(empty),
    'files': entries,
  }
  if wrong := next(content.wrong(body, step_dir.name), None):
    raise ManifestError(f'{step_dir / NAME} could not be read again: it {wrong}')
  put(step_dir, body)
  return body


def _entries(step_dir: epath.Path) -> Iterator[tuple[str, dict[str, Any]]]:
  if bucket.is_remote(step_dir):
    there = bucket.listing(step_dir)
  else:
    there = dict.fromkeys(walk(step_dir), {'md5': None})
  known = lambda n: there[n] if there[n]['md5'] else _digest(step_dir / n)
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    yield from zip(sorted(there), pool.map(known, sorted(there)))


def put(step_dir: Any, body: Mapping[str, Any]) -> None:
  """Writes a manifest through a rename; `self` is the checksum of all that it says."""
  step_dir = epath.Path(step_dir)
  body = {k: v for k, v in body.items() if k != 'self'}
  text = json.dumps(body | {'self': _self_digest(body)}, indent=1)
  if bucket.is_remote(step_dir):  # whole or absent
    with bucket.told():
      (step_dir / NAME).write_text(text)
    return
  partial = step_dir / _PARTIAL
  partial.unlink(missing_ok=True)  # were it a link, its target would be written
  partial.write_text(text)
  partial.replace(step_dir / NAME)


# ------------------------------------------------------------------ reading


def exists(step_dir: Any) -> bool:
  """Whether there is a manifest, of whatever content."""
  path = epath.Path(step_dir) / NAME
  return os.path.islink(path) or path.exists()


def is_doomed(step_dir: Any) -> bool:
  """Whether a deletion of this step was begun and not finished."""
  return not exists(step_dir) and (epath.Path(step_dir) / DOOMED).exists()


def is_link(path: Any) -> bool:
  return os.path.islink(path)


def read(step_dir: Any, name: str = NAME) -> dict[str, Any]:
  """The manifest of a step directory; raises ManifestError when there is none that can be
  trusted.
  """
  path = epath.Path(step_dir) / name
  if os.path.islink(path):
    raise ManifestError(f'{path} is a symbolic link, which is not followed')
  try:
    if path.exists() and not _is_file(path):
      raise ManifestError(f'{path} is not a file')
    body = json.loads(path.read_text())
    same = body.pop('self') == _self_digest(body)
  except FileNotFoundError:
    raise ManifestError(f'{path} does not exist: the save did not finish') from None
  except ManifestError:
    raise
  except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as e:
    raise ManifestError(f'{path} cannot be read ({type(e).__name__}: {e})') from None
  if not same:
    raise ManifestError(f'{path} does not match its own checksum')
  if body.get('format') != FORMAT:
    raise ManifestError(
      f'{path} has format {content.short(body.get("format"))}; this version reads format {FORMAT}'
    )
  if wrong := next(content.wrong(body, path.parent.name), None):
    raise ManifestError(f'{path} {wrong}')
  return body


def verify(step_dir: Any, *, checksums: bool = True, below: str = '') -> list[str]:
  """Problems of a checkpoint, each naming its file; an empty list means that it is what was saved.

  Without `checksums` only presence and sizes of the listed files are looked at: enough to know what
  may be offered, counted and deleted. With them also files that the manifest does not list are a
  problem, since what reads the arrays might read them. `below` restricts both to one folder, such
  as 'cursor/'.
  """
  step_dir = epath.Path(step_dir)
  try:
    listed = read(step_dir)['files']
  except ManifestError as e:
    return [str(e)]
  listed = {n: entry for n, entry in listed.items() if n.startswith(below)}
  if bucket.is_remote(step_dir):
    return _verify_objects(step_dir, listed, checksums, below)
  bad = {n: p for n, entry in listed.items() if (p := _check_size(step_dir, n, entry))}
  if not checksums:
    return list(bad.values())
  sized = [n for n in listed if n not in bad]
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    checked = pool.map(lambda n: _check_digest(step_dir / n, listed[n]), sized)
    found = list(progress.track(checked, f'reading {step_dir}', len(sized), 'files'))
  return [*bad.values(), *filter(None, found), *_foreign(step_dir, listed, below)]


def _verify_objects(step_dir: epath.Path, listed: dict, checksums: bool, below: str) -> list[str]:
  """The same of a store: what it says of its objects is enough, and asked for once."""
  with bucket.told():
    found, bad = bucket.listing(step_dir), []
  for name, entry in listed.items():
    path, there = step_dir / name, found.get(name)
    if there is None:
      bad.append(f'{path} is missing')
    elif there['size'] != entry['size']:
      bad.append(f'{path} has {there["size"]} bytes, {entry["size"]} were saved')
    elif checksums and there['md5'] and 'md5' in entry:
      bad += [] if there['md5'] == entry['md5'] else [f'{path} does not match its checksum']
    elif checksums:  # it was copied here
      bad += filter(None, [_check_digest(path, entry)])
  return bad + _unlisted(step_dir, found, listed, below) if checksums else bad


def _foreign(step_dir: epath.Path, listed: Mapping[str, Any], below: str) -> list[str]:
  try:
    found = walk(step_dir)
  except OSError as e:
    return [f'{e.filename or step_dir} cannot be read ({e.strerror or e})']
  return _unlisted(step_dir, found, listed, below)


def _unlisted(step_dir: epath.Path, found: Iterable[str], listed: Mapping, below: str) -> list[str]:
  return [
    f'{step_dir / n} is not in the manifest; move it out of the checkpoint'
    for n in sorted(set(found) - set(listed) - {NAME, _PARTIAL})
    if n.startswith(below)
  ]


def _check_size(step_dir: epath.Path, name: str, entry: Mapping[str, Any]) -> str | None:
  path = step_dir / name
  if link := _link(step_dir, name):
    return f'{link} is a symbolic link, which is not followed'
  try:
    size = path.stat().length
    if not _is_file(path):
      return f'{path} is not a file'
  except (FileNotFoundError, NotADirectoryError):
    return f'{path} is missing'
  except OSError as e:
    return f'{path} cannot be read ({e.strerror or e})'
  return None if size == entry['size'] else f'{path} has {size} bytes, {entry["size"]} were saved'


def _check_digest(path: epath.Path, entry: Mapping[str, Any]) -> str | None:
  try:
    kind = 'md5' if 'md5' in entry else 'sha256'  # that one was copied from a store
    same = _digest(path, kind)[kind] == entry[kind]
  except OSError as e:
    return f'{path} cannot be read ({e.strerror or e})'
  return None if same else f'{path} does not match its checksum'


def _is_file(path: epath.Path) -> bool:
  """epath takes a pipe for a file; whoever opened it would wait for ever."""
  return path.is_file() and (os.path.isfile(path) or not os.path.exists(path))


def _link(step_dir: epath.Path, name: str) -> epath.Path | None:
  """The first symbolic link on the way from the step directory to a listed file."""
  path = step_dir
  for part in name.split('/'):
    path = path / part
    if os.path.islink(path):
      return path
  return None


def _digest(path: epath.Path, kind: str = 'sha256') -> dict[str, Any]:
  digest, size = hashlib.new(kind, usedforsecurity=False), 0
  with path.open('rb') as f:
    while chunk := f.read(_CHUNK):
      digest.update(chunk)
      size += len(chunk)
  return {'size': size, kind: digest.hexdigest()}


def _self_digest(body: Mapping[str, Any]) -> str:
  return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def walk(root: epath.Path, prefix: str = '') -> list[str]:
  """Relative paths of the files below a directory; links are listed, never followed into."""
  out = []
  for child in (root / prefix).iterdir():
    name = f'{prefix}{child.name}'
    out += walk(root, f'{name}/') if child.is_dir() and not os.path.islink(child) else [name]
  return out


# ------------------------------------------------------------------ deleting


def remove(step_dir: Any) -> None:
  """Deletes the files that the manifest lists, then the manifest; foreign files and their
  directories stay, and so does what a symbolic link leads to.

  The manifest is renamed first: a kill half-way leaves a directory that is never offered and can be
  finished by calling again.
  """
  step_dir = epath.Path(step_dir)
  if bucket.is_remote(step_dir):
    with bucket.told():
      _remove_objects(step_dir)
    return
  doomed = step_dir / DOOMED
  if exists(step_dir):
    read(step_dir)
    (step_dir / NAME).replace(doomed)
  for name in read(step_dir, DOOMED)['files']:
    path = step_dir / name
    if not _link(step_dir, name) and _is_file(path):
      path.unlink(missing_ok=True)
  (step_dir / _PARTIAL).unlink(missing_ok=True)
  doomed.unlink()
  _remove_empty(step_dir)


def _remove_objects(step_dir: epath.Path) -> None:
  if exists(step_dir):
    read(step_dir)
    bucket.move_file(step_dir / NAME, step_dir / DOOMED)
  ours = read(step_dir, DOOMED)['files'].keys() & bucket.listing(step_dir).keys()
  bucket.delete(step_dir / n for n in ours)
  bucket.delete([step_dir / DOOMED])


def _remove_empty(directory: epath.Path) -> None:
  for child in list(directory.iterdir()):
    if child.is_dir() and not os.path.islink(child):
      _remove_empty(child)
  if not list(directory.iterdir()):
    directory.rmdir()
