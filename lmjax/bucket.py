"""A run directory in an object store, gs://bucket/run: through etils.epath and gcsfs, as orbax.

An object is whole or absent, which a file is only after a rename; it can
be neither appended to nor renamed, and a directory is no more than how names begin. What a run does
to its files and a store cannot do is here.
"""

import base64
import concurrent.futures
import contextlib
import functools
import importlib.util
import inspect
import logging
import os
import pathlib
import threading
import time
from typing import Any, Iterable

from etils import epath

SCHEME = 'gs://'
SECONDS = 15.0  # in which a store must have answered for the first time
GOOGLE_SECONDS = 60.0  # and on machines of Google's, where network and credentials may come late
_LIBRARIES = ('aiohttp', 'fsspec', 'gcsfs', 'google', 'requests', 'urllib3')
_CHECKED: set[str] = set()
_LOGIN = 'log in with: gcloud auth application-default login'

# etils would go through TensorFlow where that is installed, and looks once, at any path.
os.environ.setdefault('EPATH_USE_TF', 'false')
# gcsfs would ask another service, with credentials of its own, how each bucket is laid out.
os.environ.setdefault('GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT', 'false')


def is_remote(path: Any) -> bool:
  """Whether a path lies in an object store."""
  return os.fspath(path).startswith(SCHEME)


def is_root(path: Any) -> bool:
  """Whether a path is a bucket, or above one."""
  return is_remote(path) and '/' not in os.fspath(path).removeprefix(SCHEME)


def refuse(text: str) -> None:
  """Raises ValueError where a path has a scheme that does not work here."""
  scheme, found, _ = text.partition('://')
  if found and scheme != 'gs':
    raise ValueError(
      f"{text!r}: gs:// is the only object store that works here, since orbax's arrays go to no "
      'other; give a gs:// path, or mount the store and give the path of the mount'
    )


def place(text: str) -> epath.Path:
  """The path of an object store that answers, without a slash at its end.

  Raises ValueError, within SECONDS (or GOOGLE_SECONDS), where the bucket does not exist, may not be
  read, or does not answer, and where gcsfs is not installed.
  """
  refuse(text)
  bucket, _, below = text.removeprefix(SCHEME).partition('/')
  below = below.strip('/')
  if not bucket or not below or '..' in below.split('/') or '//' in below:
    raise ValueError(f'{text!r}: a bucket and a folder are expected, as in gs://bucket/runs/first')
  if bucket not in _CHECKED:
    _check(text, bucket)
    _CHECKED.add(bucket)
  return path(f'{SCHEME}{bucket}/{below}')


def _check(text: str, bucket: str) -> None:
  if importlib.util.find_spec('gcsfs') is None:
    raise ValueError(f"{text!r} needs the package gcsfs; install it with: pip install 'lmjax[gcs]'")
  failed: list[BaseException] = []
  seconds = GOOGLE_SECONDS if _on_google() else SECONDS
  # A thread that nobody waits for: credentials are looked for in places that may not answer.
  thread = threading.Thread(target=_ask, args=(bucket, seconds, failed), daemon=True)
  thread.start()
  thread.join(seconds)
  if failed:
    raise ValueError(f'{text!r}: {_why(bucket, failed[-1])}') from None
  if thread.is_alive():
    what = f'nothing answered at {_address()}' if _fs.cache_info().currsize else 'nobody answered'
    raise ValueError(f'{text!r}: {what} within {seconds:.0f} s; {_look()}')


def _ask(bucket: str, seconds: float, failed: list[BaseException]) -> None:
  """Lists one object, trying again for at most so long. What failed is in `failed`, and nothing is
  when it has succeeded.
  """
  import fsspec
  import gcsfs.retry
  import google.auth.exceptions

  end, pause = time.monotonic() + seconds, 1.0
  while True:
    try:
      fs = _fs()
      once = inspect.unwrap(type(fs)._request)  # itself it tries again for half a minute
      fsspec.asyn.sync(fs.loop, once, fs, 'GET', 'b/{}/o', bucket, maxResults=1)
      return failed.clear()
    except BaseException as e:
      failed.append(e)
      again = isinstance(e, google.auth.exceptions.TransportError) or gcsfs.retry.is_retriable(e)
    if not again or time.monotonic() + pause >= end:
      return None
    time.sleep(pause)
    pause *= 2


def _on_google() -> bool:
  """Whether this is a machine of Google's, by the sign that google.auth goes by."""
  try:
    return pathlib.Path('/sys/class/dmi/id/product_name').read_text().startswith('Google')
  except OSError:
    return False


def _address() -> str:
  return os.environ.get('STORAGE_EMULATOR_HOST') or 'https://storage.googleapis.com'


def _look() -> str:
  """What to look at where nothing answers."""
  if os.environ.get('STORAGE_EMULATOR_HOST'):
    return 'start the emulator there, or unset STORAGE_EMULATOR_HOST'
  login = '' if _fs.cache_info().currsize and _known() else f'{_LOGIN}, '
  return f'look at the network, {login}or set STORAGE_EMULATOR_HOST for an emulator'


def _why(bucket: str, e: BaseException) -> str:
  code = getattr(e, 'code', None)
  at = f' at {_address()}' if os.environ.get('STORAGE_EMULATOR_HOST') else ''
  if isinstance(e, FileNotFoundError) or code == 404:
    return f'there is no bucket {bucket!r}{at}, or it is hidden from you; look at its name'
  if code in (401, 403) or 'Forbidden' in str(e):
    return (
      f'you may not list the bucket {bucket!r}{at}{_unknown()} ({_line(e)}); {_LOGIN}, or let the '
      'service account of this machine have roles/storage.objectAdmin on it'
    )
  if code is None and type(e).__module__.split('.')[0] in _LIBRARIES:
    return f'nothing can be reached at {_address()} ({_line(e)}); {_look()}'
  return f'the object store cannot be used ({_line(e)})'


def _known() -> bool:
  """Whether credentials were found."""
  return _fs().credentials.credentials is not None


def _unknown() -> str:
  """That there are no credentials, and what was to name some."""
  if _known():
    return ''
  file = os.environ.get('GOOGLE_APPLICATION_CREDENTIALS')
  named = f' (GOOGLE_APPLICATION_CREDENTIALS={file!r} has none)' if file else ''
  return f' without credentials, and none were found{named}'


def _line(e: BaseException) -> str:
  return ' '.join(str(e).split())[:300] or type(e).__name__


def path(text: Any) -> epath.Path:
  """The path of a store, of which nothing is looked at."""
  _fs()
  return epath.Path(text)


@functools.cache
def _fs() -> Any:
  import fsspec
  import google.auth.exceptions

  # What another process wrote must be seen; also by the instance that etils makes after this.
  for name in ('gcs', 'gs'):
    fsspec.config.conf.setdefault(name, {}).setdefault('use_listings_cache', False)
  # It prints the stack of every failure, also of those that are told in a sentence.
  logging.getLogger('gcsfs').setLevel(logging.CRITICAL)
  # With no token set, gcsfs would ask for 15 s what google.auth has just found not to be there.
  own = any('token' in fsspec.config.conf[name] for name in ('gcs', 'gs'))
  try:
    return fsspec.filesystem('gcs') if own else _as('google_default')
  except google.auth.exceptions.DefaultCredentialsError:
    return _as('anon')


def _as(token: str) -> Any:
  import fsspec

  for name in ('gcs', 'gs'):
    fsspec.config.conf[name]['token'] = token
  return fsspec.filesystem('gcs')


class StoreError(OSError):
  """A request to an object store failed, and was tried again as often as gcsfs does."""


@contextlib.contextmanager
def told(kind: type = StoreError):
  """What the libraries of a store raise for a request that failed becomes `kind`."""
  try:
    yield
  except StoreError as e:
    raise (e if kind is StoreError else kind(str(e))) from e.__cause__
  except OSError as e:
    if e.errno is not None or '\n' not in str(e):
      raise
    raise kind(_line(e)) from e  # a refusal, told on several lines
  except Exception as e:
    if type(e).__module__.split('.')[0] not in _LIBRARIES:
      raise
    raise kind(f'the object store failed: {_line(e)} ({type(e).__name__})') from e


# ------------------------------------------------------------------ what a store cannot do itself


def append(path: epath.Path, text: str) -> None:
  """Adds to an object by writing all of it again."""
  with told():
    old = path.read_bytes() if path.exists() else b''
    path.write_bytes(old + text.encode())


def listing(path: Any) -> dict[str, dict[str, Any]]:
  """The objects below a path, by the rest of their names: size in bytes, and the MD5 in hex that
  the store computed and keeps, None where it has none (it was put together from parts). One request
  for a thousand of them.
  """
  root = os.fspath(path).removeprefix(SCHEME)
  found = _fs().find(root, detail=True)
  return {
    name.removeprefix(f'{root}/'): {
      'size': int(info['size']),
      'md5': base64.b64decode(info['md5Hash']).hex() if 'md5Hash' in info else None,
    }
    for name, info in found.items()
    if not name.endswith('/')
  }


def delete(paths: Iterable[Any]) -> None:
  """Deletes objects."""
  if names := [os.fspath(p).removeprefix(SCHEME) for p in paths]:
    _fs().rm(names)


def move(old: epath.Path, new: epath.Path, *, first: str = '') -> None:
  """Moves all objects below a path: copies them, and then deletes those here, `first` the first of
  them. A kill on the way leaves everything here, or nothing that still has `first`.
  """
  names = list(listing(old))
  strip = lambda root: [os.fspath(root / n).removeprefix(SCHEME) for n in names]
  with concurrent.futures.ThreadPoolExecutor(16) as pool:
    list(pool.map(_fs().cp_file, strip(old), strip(new)))
  delete([old / n for n in names if n == first])
  delete([old / n for n in names if n != first])


def move_file(old: epath.Path, new: epath.Path) -> None:
  """Moves one object over what is there."""
  new.write_bytes(old.read_bytes())
  old.unlink()


def upload(file: Any, path: epath.Path) -> None:
  """Writes the content of a local file into an object."""
  with told():
    _fs().put_file(os.fspath(file), os.fspath(path).removeprefix(SCHEME))
