"""The run directory: which run it holds, and everything needed to repeat it.

  config.json        the resolved config; a resume keeps it
  fingerprint.txt    of what changes tokens or mathematics; written first, as the mark of ownership
  command.txt        one line per start: time, then the exact command
  versions.json      a list, one entry per start that changed something: software, device, commit
  metrics.jsonl, tb/, checkpoints/, report.html    written by the parts of that name
  bad_steps.jsonl, skips.json    refused updates, batches left out; only where there were any

Nothing that exists is overwritten. The directory may be in an object store (see `bucket`), which
has no locks: there nobody but the user keeps two runs from using it at a time.
"""

import contextlib
import dataclasses
import datetime
import json
import os
import pathlib
import re
import shlex
import socket
import sys
from typing import Any, Mapping, Sequence

from lmjax import bucket
from lmjax import files
from lmjax import versions

FILES = (
  'config.json',
  'fingerprint.txt',
  'command.txt',
  'versions.json',
  'metrics.jsonl',
  'bad_steps.jsonl',
  'skips.json',
  'tb',
  'checkpoints',
  'report.html',
)
_SHOWN = 5
_ABSENT = object()
_HELD: set[tuple[int, int]] = set()  # lock files that this process holds: device, inode


@dataclasses.dataclass
class RunDir:
  """An opened run directory. `resumed` says that it was there before; `config` is the one it was
  started with, until `adopt`.
  """

  path: Any  # pathlib's, or of an object store
  config: dict[str, Any]
  fingerprint: str
  resumed: bool
  lock: Any = dataclasses.field(default=None, repr=False)
  forced: dict[str, Any] | None = None  # the config that takes the place of the old one

  @property
  def checkpoints(self) -> Any:
    return self.path / 'checkpoints'

  def adopt(self) -> None:
    """Makes a forced config that of the directory, once its checkpoint is known to fit; the old one
    is kept as `config.<n>.json`.
    """
    if self.forced is not None:
      with files.kept(self.path / 'config.json'):
        self.config = _write_identity(self.path, self.forced, self.fingerprint)
      self.forced = None

  def disown(self) -> None:
    """Takes back what opening a new directory wrote, for a run that could not begin: the same
    directory may be given with another config.
    """
    if self.resumed or self.lock is None or (self.path / 'metrics.jsonl').exists():
      return
    with contextlib.suppress(OSError), bucket.told():
      if self.checkpoints.is_dir():
        if bucket.is_remote(self.path):
          return
        self.checkpoints.rmdir()  # refuses where there is one
      for name in ('versions.json', 'command.txt', 'config.json', 'fingerprint.txt'):
        (self.path / name).unlink(missing_ok=True)

  def close(self) -> None:
    """Lets another process use the directory."""
    if self.lock is not None:
      self.lock.close()
      self.lock = None


def open_rundir(
  workdir: Any,
  config: Mapping[str, Any],
  fingerprint: str,
  *,
  force: bool = False,
  write: bool = True,
  ignore: Sequence[str] = (),
  command: Sequence[str] | None = None,
) -> RunDir:
  """Makes a run directory, or opens it to resume the same run.

  Args:
    config: the resolved config, nested dictionaries of JSON values (tuples become lists).
    fingerprint: equal for configs that may continue each other.
    force: accept another fingerprint; the directory keeps its own until `adopt`.
    write: False on all processes but the first, which then only check.
    ignore: keys (or prefixes of them) that the fingerprint leaves out, not to be named as the
      difference.
    command: the command to record; by default that of this process.

  Raises:
    ValueError: the directory belongs to another config (differing keys named), holds files of
      another program that lmjax would write, is in use by another process, or cannot be written.
  """
  path = local(workdir)
  config = json.loads(json.dumps(config))
  resumed, forced = (path / 'fingerprint.txt').exists(), None
  if resumed:
    same = _check_same(path, config, fingerprint, force=force, ignore=ignore)
    forced = None if same else config
  else:
    _check_free(path)
  if not write:
    return RunDir(path, config, fingerprint, resumed)
  make(path)
  lock = None
  try:
    lock = _lock(path)
    config = read_config(path) if forced else _write_identity(path, config, fingerprint)
    _append_command(path, command)
    _append_versions(path)
  except BaseException as e:
    if lock is not None:
      lock.close()
    if isinstance(e, OSError):
      raise _unwritable(path, e) from None
    raise
  return RunDir(path, config, fingerprint, resumed, lock, forced)


def make(path: Any) -> None:
  """Makes a run directory where there is none; raises ValueError where it cannot be."""
  if bucket.is_remote(path):
    return  # it begins with its first file
  try:
    path.mkdir(parents=True, exist_ok=True)
  except OSError as e:
    raise _unwritable(path, e) from None


def _unwritable(path: Any, e: OSError) -> ValueError:
  return ValueError(
    f'workdir {str(path)!r} cannot be written: {e.strerror or e} ({e.filename or path}); '
    'give a directory that you may write to'
  )


def read_config(workdir: Any) -> dict[str, Any]:
  """The resolved config of a run directory; raises ValueError when it is not one."""
  path = local(workdir) / 'config.json'
  try:
    config = files.read_json(path)
  except ValueError as e:
    raise ValueError(f'{str(workdir)!r} is not a run directory of lmjax: {e}') from None
  if not isinstance(config, dict):
    raise ValueError(f'{path} holds no config: {str(config)[:60]} is not an object')
  return config


def flatten(config: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """{'model': {'width': 8}} -> {'model.width': 8}."""
  out = {}
  for k, v in config.items():
    out |= flatten(v, f'{prefix}{k}.') if isinstance(v, Mapping) and v else {f'{prefix}{k}': v}
  return out


# ------------------------------------------------------------------ checks


def local(workdir: Any) -> Any:
  """The absolute path that a workdir means, `~` included, or one of an object store that answers;
  raises ValueError where it means none.
  """
  text = os.fspath(workdir)
  if not text:
    raise ValueError('workdir is empty; give a directory, as in --workdir=runs/first')
  if '://' in text:
    try:
      return bucket.place(text)
    except ValueError as e:
      raise ValueError(f'workdir {e}') from None
  try:
    path = pathlib.Path(text).expanduser().absolute()
    there = next(p for p in (path, *path.parents) if _exists(p))
  except (OSError, ValueError, RuntimeError) as e:  # too long, a null byte, nobody's home
    why = getattr(e, 'strerror', None) or e
    raise ValueError(f'workdir {text[:60]!r} is no path: {why}') from None
  if not there.is_dir():
    raise ValueError(f'workdir {text!r}: {str(there)!r} is a file; give a directory')
  if os.sep == '/' and '\\' in str(path):  # the library of checkpoints takes it for /
    raise ValueError(f'workdir {text!r}: a path without a backslash is expected')
  return path


def _exists(path: pathlib.Path) -> bool:
  """Raises what `Path.exists` hides in some versions of Python."""
  try:
    os.stat(path)
  except (FileNotFoundError, NotADirectoryError):
    return False
  return True


def _check_free(path: Any) -> None:
  there = (lambda p: p.exists()) if bucket.is_remote(path) else os.path.lexists
  taken = [n for n in FILES if there(path / n)]
  if taken:
    raise ValueError(
      f'workdir {str(path)!r} holds {", ".join(taken)} but no lmjax run (no fingerprint.txt); '
      'nothing is overwritten: give another --workdir'
    )


def _check_same(
  path: Any, config: dict, fingerprint: str, *, force: bool, ignore: Sequence[str]
) -> bool:
  """Whether the fingerprints are equal; raises ValueError where they are not and must be."""
  old = _fingerprint(path)
  if old == fingerprint or force:
    return old == fingerprint
  changed = _differences(path, config, ignore)
  what = (
    '; '.join(changed[:_SHOWN])
    or f'no key differs, but the fingerprint is {old} there and {fingerprint} here'
  )
  more = f'; and {len(changed) - _SHOWN} more' if len(changed) > _SHOWN else ''
  raise ValueError(
    f'workdir {str(path)!r} belongs to a run with another config: {what}{more}. '
    'Give another --workdir, '
    f'or start from that run with --config.init_from={path}'
  )


def _fingerprint(path: Any) -> str:
  text = files.read_text(path / 'fingerprint.txt').strip()
  if not re.fullmatch(r'[0-9a-f]{1,64}', text):
    raise ValueError(
      f'{path / "fingerprint.txt"} is damaged: {text[:40]!r} is no fingerprint of a config; '
      'restore the file or give another --workdir'
    )
  return text


def _differences(path: Any, config: dict, ignore: Sequence[str]) -> list[str]:
  if not (path / 'config.json').exists():
    return []
  old, new = flatten(read_config(path)), flatten(config)
  keys = [
    k
    for k in sorted(old.keys() | new.keys())
    if old.get(k, _ABSENT) != new.get(k, _ABSENT)
    and not any(k == i or k.startswith(f'{i}.') for i in ignore)
  ]
  return [f'{k} is {_value(old, k)} there and {_value(new, k)} here' for k in keys]


def _value(flat: Mapping[str, Any], key: str) -> str:
  text = repr(flat[key]) if key in flat else 'absent'
  return text if len(text) <= 200 else f'{text[:197]}...'


@contextlib.contextmanager
def held(path: Any):
  """The directory for this process alone; raises ValueError where another one uses it."""
  lock = _lock(files.path_of(path))
  try:
    yield
  finally:
    if lock is not None:
      lock.close()


def _lock(path: Any) -> Any:
  """Holds the directory for this process; what has no locks is accepted as it is."""
  if bucket.is_remote(path):
    return _NoLock()
  try:
    import fcntl
  except ImportError:
    return None
  file = open(path / '.lock', 'a+', encoding='utf-8', errors='replace')
  at = os.fstat(file.fileno())
  lock = _Lock(file, (at.st_dev, at.st_ino))
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    file.seek(0)
    holder = file.read(200).strip()
    file.close()
    if lock.key not in _HELD:  # pid and host do not tell: containers share them
      raise ValueError(
        f'workdir {str(path)!r} is in use by {holder or "another process"}; '
        'stop it or give another --workdir'
      ) from None
    return None
  except OSError:
    return lock
  _HELD.add(lock.key)
  with contextlib.suppress(OSError):  # a full disk
    file.truncate(0)
    file.write(f'process {os.getpid()} on {socket.gethostname()}')
    file.flush()
  return lock


class _NoLock:
  """What stands for the lock of a directory that has none."""

  def close(self) -> None:
    pass


class _Lock:
  """A directory that this process holds until `close`."""

  def __init__(self, file: Any, key: tuple[int, int]):
    self._file, self.key = file, key

  def close(self) -> None:
    _HELD.discard(self.key)
    with contextlib.suppress(OSError):
      self._file.close()


# ------------------------------------------------------------------ records


def _write_identity(path: Any, config: dict, fingerprint: str) -> dict:
  """Writes fingerprint and config where they are missing or were forced to change; returns the
  config that counts.
  """
  mark, file = path / 'fingerprint.txt', path / 'config.json'
  forced = mark.exists() and _fingerprint(path) != fingerprint
  if forced and file.exists():
    n = next(n for n in range(1, 10**6) if not (path / f'config.{n}.json').exists())
    files.move(file, path / f'config.{n}.json')
  if forced or not mark.exists():
    files.write(mark, fingerprint + '\n')
  if not file.exists():
    files.write(file, json.dumps(config, indent=2) + '\n')
  return read_config(path)


def _append_command(path: Any, command: Sequence[str] | None) -> None:
  now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds')
  words = shlex.join(command or [sys.executable, *sys.orig_argv[1:]])
  files.append(path / 'command.txt', f'{now}  {words}\n')


def _append_versions(path: Any) -> None:
  file, now = path / 'versions.json', versions.record()
  past = []
  if file.exists():
    try:
      past = files.read_json(file)
      if not isinstance(past, list) or not all(isinstance(v, dict) for v in past):
        raise ValueError('not a list of objects')
    except ValueError:  # a record, which nothing depends on
      past = [{'unreadable': file.read_bytes()[: 1 << 20].decode('utf-8', 'replace')}]
  if not past or {k: v for k, v in past[-1].items() if k != 'time'} != now:
    time = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds')
    files.write(file, json.dumps([*past, {'time': time, **now}], indent=2) + '\n')
