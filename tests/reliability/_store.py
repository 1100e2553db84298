"""An object store on this machine: the emulator of Google's, in a thread of the test."""

import contextlib
import logging
import socketserver
from typing import Any, Callable

import _processes
import pytest

from lmjax import bucket

BUCKET = 'lmjax-tests'


class Store:
  """Objects, and a look at what is being written: `before(name, content)` is called first, and may
  refuse it by raising `Refused`, which a client takes for a bucket that is gone.
  """

  def __init__(self, storage: Any, refused: type):
    self.Refused = refused
    self.before: Callable[[str, bytes], None] = lambda name, content: None
    create = storage.create_file

    def created(where, name, content, *rest):
      self.before(name, content)
      return create(where, name, content, *rest)

    storage.create_file = created

  def url(self, name: str) -> str:
    return f'gs://{BUCKET}/{name}'

  def names(self, below: str) -> set[str]:
    """Names of the objects below a folder."""
    return set(bucket.listing(self.url(below)))


@contextlib.contextmanager
def running():
  """A store with one empty bucket, and the environment by which all libraries find it."""
  pytest.importorskip('gcsfs', reason="gcsfs is not installed: pip install '.[gcs]'")
  module = pytest.importorskip(
    'gcp_storage_emulator.server', reason="no emulator of a store: pip install '.[test]'"
  )
  from gcp_storage_emulator import exceptions
  from gcp_storage_emulator.handlers import objects

  logging.getLogger('gcp_storage_emulator').setLevel(logging.CRITICAL)
  port = _processes.port()
  address = f'http://127.0.0.1:{port}'
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('STORAGE_EMULATOR_HOST', address)
    patch.setenv('TENSORSTORE_GCS_HTTP_URL', address)
    patch.setenv('NO_GCE_CHECK', 'true')
    # Clients hang up where they are killed, or have seen enough.
    patch.setattr(socketserver.BaseServer, 'handle_error', lambda *_: None)
    patch.setattr(bucket, '_CHECKED', set())
    download = objects.download

    def versioned(request, response, storage, **more):
      """With the header that the emulator leaves out, without which TensorStore now and then fails
      with 'Malformed StorageGeneration'.
      """
      download(request, response, storage, **more)
      with contextlib.suppress(exceptions.NotFound):
        where = request.params['bucket_name'], request.params['object_id']
        response['x-goog-generation'] = storage.get_file_obj(*where)['generation']

    patch.setattr(objects, 'download', versioned)
    server = module.create_server('127.0.0.1', port, in_memory=True, default_bucket=BUCKET)
    server.start()
    try:
      yield Store(server._storage, exceptions.NotFound)
    finally:
      server.stop()
