"""A run directory in an object store keeps the promises that one on a disk keeps."""

import functools
import http.server
import importlib.util
import inspect
import json
import pathlib
import signal
import socket
import threading
import time

import _processes
import _runs
import _store
import jax
import jax.numpy as jnp
import pytest

from lmjax import bucket
from lmjax import main
from lmjax import report
from lmjax import sample
from lmjax import tracking
from lmjax.checkpoint import Checkpointer
from lmjax.checkpoint import manifest
from lmjax.checkpoint import tool


@pytest.fixture(scope='module')
def store():
  with _store.running() as found:
    yield found


@pytest.fixture(autouse=True)
def _nothing_is_refused(store):
  yield
  store.before = lambda name, content: None


@pytest.fixture(scope='module')
def texts(tmp_path_factory):
  folder = tmp_path_factory.mktemp('texts')
  return _runs.texts(folder), f'jsonl(path="{folder}/0.jsonl")'


@pytest.fixture(scope='module')
def how(texts, tmp_path_factory):
  cache = tmp_path_factory.mktemp('tokens')
  return dict(data__valid=texts[1], data__cache=cache, eval__every=8, eval__batches=2)


@pytest.fixture(scope='module')
def straight(texts, how, tmp_path_factory):
  """A run on a disk."""
  workdir = tmp_path_factory.mktemp('straight') / 'w'
  assert _runs.run(workdir, texts[0], **how) == 0
  return workdir


def check_equal(straight, workdir, step=24):
  names = _runs.same_arrays(_runs.arrays(straight, step), _runs.arrays(workdir, step))
  assert not names, f'arrays differ: {names}'
  assert _runs.lines(workdir) == _runs.lines(straight)
  assert [m['step'] for m in _runs.lines(workdir)] == list(range(1, step + 1))
  assert _runs.lines(workdir, 'eval') == _runs.lines(straight, 'eval') != []


@pytest.mark.slow
def test_a_run_in_a_store_equals_one_on_a_disk(store, straight, texts, how, tmp_path, capsys):
  workdir = store.url('runs/whole')
  more = dict(tensorboard='true', report='true', sample__tokens=4)
  assert _runs.run(workdir, texts[0], **how, **more) == 0
  check_equal(straight, workdir)
  small = {'config.json', 'fingerprint.txt', 'command.txt', 'versions.json', 'metrics.jsonl'}
  names = store.names('runs/whole')
  assert small | {'report.html'} < names and any(n.startswith('tb/events') for n in names)
  assert not any('tokens' in n for n in names)

  assert main.main([f'--workdir={workdir}', f'--eval=perplexity(path="{_path(texts)}")']) == 0
  assert _runs.lines(workdir, 'task')
  assert sample.main([f'--workdir={workdir}', '--tokens=3']) == 0
  assert report.main([workdir, str(straight), f'--out={tmp_path}/two.html']) == 0
  assert '2 runs compared' in (tmp_path / 'two.html').read_text()
  capsys.readouterr()
  assert tool.main(['verify', workdir]) == tool.main(['inspect', workdir]) == 0
  assert capsys.readouterr().out.count('every file is what was saved') == 3
  assert tool.main(['diff', workdir, str(straight)]) == 0
  # The same command again has nothing to do, and one with another config is refused.
  assert _runs.run(workdir, texts[0], **how, **more) == 0
  assert _runs.run(workdir, texts[0], **how, **more, peak_lr=1) == 2
  # Another run begins from it.
  other = tmp_path / 'other'
  assert _runs.run(other, texts[0], init_from=workdir, steps=2, peak_lr=1e-9) == 0
  assert _runs.lines(other)[0]['loss'] < _runs.lines(straight)[0]['loss'] - 0.5


def _path(texts) -> str:
  return texts[1].split('"')[1]


MOMENTS = {  # what is being written when the machine is gone
  'arrays': 'checkpoints/12/state/ocdbt',
  'last of arrays': 'checkpoints/12/commit_success.txt',
  'manifest': 'checkpoints/12/manifest.json',
}


@pytest.mark.parametrize(
  'moment',
  [pytest.param(m, marks=pytest.mark.slow) for m in MOMENTS],
)
def test_killed_in_a_save_and_resumed_equals_straight(
  store, straight, texts, how, tmp_path, moment
):
  name = f'killed/{moment.replace(" ", "-")}'
  words = _runs.words(store.url(name), texts[0], **how)
  with _processes.Process(words, tmp_path / 'w') as p:

    def kill(written, content):
      if written.startswith(f'{name}/{MOMENTS[moment]}'):
        p.process.send_signal(signal.SIGKILL)
        p.process.wait()
        raise store.Refused

    store.before = kill
    assert p.wait() == -signal.SIGKILL, p.said
  store.before = lambda *_: None
  left = store.names(f'{name}/checkpoints')
  assert '12/manifest.json' not in left and any(n.startswith('12/') for n in left)
  # No metrics before a save are lost with the machine.
  assert max(m['step'] for m in tracking.read_metrics(store.url(name))) >= 8
  with _processes.Process(words, tmp_path / 'w') as p:
    assert p.wait() == 0, p.said
  assert 'resumed at step 8' in p.said
  check_equal(straight, store.url(name))
  assert any(n.startswith('incomplete-12-0/') for n in store.names(f'{name}/checkpoints'))


@pytest.mark.slow
def test_two_processes_share_a_directory_in_a_store(store, texts, how, tmp_path):
  name, written = 'runs/two', []
  store.before = lambda object, content: written.append(object)
  how = dict(how, data__valid='')  # its score would be a second writing of the manifest
  shared = f'--workdir={store.url(name)}'
  with _processes.several(2, tmp_path / 'w', texts[0], shared, steps=4, **how) as two:
    assert [p.wait() for p in two] == [0, 0], [p.said for p in two]
  assert Checkpointer(store.url(f'{name}/checkpoints')).latest_whole() == 4
  assert sum(w.endswith('/4/manifest.json') for w in written) == 1
  assert sum(w.endswith('fingerprint.txt') for w in written) == 1
  assert [m['step'] for m in _runs.lines(store.url(name))] == [1, 2, 3, 4]
  with _processes.several(1, tmp_path / 'w', texts[0], shared, steps=4, **how) as (one,):
    assert one.wait() == 0, one.said
  assert 'this run is complete' in one.said


def test_metrics_are_in_the_store_before_the_save_that_follows_them(store, texts, how):
  name, seen = 'runs/metrics', {}

  def look(written, content):
    if written.endswith('metrics.jsonl'):
      seen['lines'] = content
    elif written.endswith('/state/_METADATA'):
      lines = map(json.loads, seen.get('lines', b'').splitlines())
      seen.setdefault(int(written.split('/')[-3]), max(m['step'] for m in lines))

  store.before = look
  assert _runs.run(store.url(name), texts[0], **how, steps=8) == 0
  assert seen[4] >= 4 and seen[8] >= 8


def test_what_another_process_writes_is_seen(store):
  import fsspec

  folder = bucket.place(store.url('seen/a'))
  (folder / 'mine').write_text('1')
  assert [p.name for p in folder.iterdir()] == ['mine'] and not (folder / 'theirs').exists()
  other = fsspec.filesystem('gcs', skip_instance_cache=True)
  other.pipe_file(f'{_store.BUCKET}/seen/a/theirs', b'2')
  assert (folder / 'theirs').exists() and len(list(folder.iterdir())) == 2
  other.rm_file(f'{_store.BUCKET}/seen/a/mine')
  assert bucket.listing(folder).keys() == {'theirs'} and not (folder / 'mine').exists()


def test_a_store_that_fails_ends_the_run(store, texts, how, capsys):
  def refuse(written, content):
    if '/checkpoints/8/' in written:
      raise store.Refused

  store.before = refuse
  assert _runs.run(store.url('runs/fails'), texts[0], **how) == 74
  said = [x for x in capsys.readouterr().err.splitlines() if x.startswith('lmjax: ')]
  assert len(said) == 1 and 'saving step 8 to gs://' in said[0]
  assert Checkpointer(store.url('runs/fails/checkpoints')).latest_whole() == 4


# ------------------------------------------------------------------ checkpoints


def state(step):
  return {'params': {'w': jnp.full((20, 30), step, jnp.bfloat16)}, 'step': jnp.int32(step)}


LIKE = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state(0))


def saved(store, name, steps=(1, 2, 3), **settings):
  directory = store.url(f'saved/{name}')
  with Checkpointer(directory, **dict(dict(keep_last=0), **settings)) as c:
    for s in steps:
      c.save(s, state(s), {'step': s}, {'loss': 1 / s})
  return Checkpointer(directory)


def array_object(directory, step):
  names = bucket.listing(directory / str(step))
  return directory / str(step) / max(names, key=lambda n: names[n]['size'] * ('/d/' in n))


def flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(bytes(data))


def swap(path):
  """The object of the same place in another step: its own checksums hold."""
  path.write_bytes(array_object(path.parents[3], 2).read_bytes())


def unlink(path):
  path.unlink()


def grow(path):
  path.write_bytes(path.read_bytes() + b'x')


@pytest.mark.parametrize('damage', [flip, swap, unlink, grow])
def test_a_damaged_object_is_refused_by_name(store, damage):
  c = saved(store, damage.__name__)
  path = array_object(c.directory, 3)
  damage(path)
  c = Checkpointer(c.directory)
  assert c.offered() == [1, 2, 3] and c.latest_whole() == 2
  for restore in (lambda: c.restore(3, LIKE), lambda: c.restore_params(3)):
    with pytest.raises(ValueError, match='is damaged.*the newest whole step is 2|would use step 2'):
      restore()
    with pytest.raises(ValueError) as e:
      restore()
    assert str(path) in str(e.value)
  assert int(c.restore(2, LIKE)[0]['step']) == 2


def test_nothing_foreign_is_deleted(store):
  c = saved(store, 'foreign')
  mine = c.directory / '1' / 'notes.txt'
  mine.write_text('mine')
  beside = c.directory / 'README'
  beside.write_text('mine')
  with Checkpointer(c.directory, keep_last=1, keep_best=False) as again:
    again.save(4, state(4), {'step': 4})
  assert again.steps() == [4]
  left = {n for n in bucket.listing(c.directory) if not n.startswith('4/')}
  assert left == {'1/notes.txt', 'README'}


@pytest.mark.slow
@pytest.mark.parametrize('at', ['copy', 'first deletion', 'last deletion'])
def test_a_step_is_whole_or_gone_when_setting_it_aside_was_cut_off(store, monkeypatch, at):
  c, fs = saved(store, at.replace(' ', '-')), bucket._fs()
  copy, delete, calls = fs.cp_file, bucket.delete, []

  def stop(what, *args):
    calls.append(what)
    if calls.count(what) == dict(copy=3).get(what, 1 if at.startswith('first') else 2):
      raise KeyboardInterrupt
    return {'copy': copy, 'deletion': delete}[what](*args)

  if at == 'copy':
    monkeypatch.setattr(fs, 'cp_file', lambda *a: stop('copy', *a))
  monkeypatch.setattr(bucket, 'delete', lambda paths: stop('deletion', paths))
  with pytest.raises(KeyboardInterrupt):
    c2 = Checkpointer(c.directory)
    c2.set_aside(after=2)
  monkeypatch.undo()
  again = Checkpointer(c.directory)
  assert again.offered() == ([1, 2] if at == 'last deletion' else [1, 2, 3])
  assert again.latest_whole() == again.latest()
  again.set_aside(after=2)
  assert Checkpointer(c.directory).offered() == [1, 2]


def test_a_step_that_was_copied_is_still_checked(store, tmp_path):
  c = saved(store, 'copied')
  for name in bucket.listing(c.directory / '2'):
    there = tmp_path / 'c' / '2' / name
    there.parent.mkdir(parents=True, exist_ok=True)
    there.write_bytes((c.directory / '2' / name).read_bytes())
  here = Checkpointer(tmp_path / 'c')
  assert int(here.restore(2, LIKE)[0]['step']) == 2
  path = pathlib.Path(array_object(c.directory, 2))
  path = tmp_path / 'c' / pathlib.Path(*path.parts[path.parts.index('2') :])
  flip(path)
  assert manifest.verify(tmp_path / 'c' / '2') == [f'{path} does not match its checksum']


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
  'workdir, said',
  [
    ('s3://bucket/run', 'gs:// is the only object store that works here'),
    ('hdfs://name/run', 'gs:// is the only object store that works here'),
    ('gs://', 'a bucket and a folder are expected'),
    ('gs://lmjax-tests', 'a bucket and a folder are expected'),
    ('gs://lmjax-tests/../x', 'a bucket and a folder are expected'),
    ('gs://no-such-bucket/run', "there is no bucket 'no-such-bucket'"),
  ],
)
def test_a_place_that_cannot_be_is_told_in_a_sentence(store, texts, capsys, workdir, said):
  assert _runs.run(workdir, texts[0]) == 2
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 1 and said in lines[0] and lines[0].startswith(f"lmjax: workdir '{workdir}")
  assert sample.main([f'--workdir={workdir}']) == report.main([workdir]) == 2
  assert tool.main(['verify', workdir]) == 2
  assert said in capsys.readouterr().err


def test_other_settings_that_name_a_store(store, texts, capsys):
  workdir = store.url('runs/others')
  assert _runs.run(workdir, texts[0], data__cache='gs://lmjax-tests/tokens') == 2
  assert 'config.data.cache' in capsys.readouterr().err
  assert _runs.run(workdir, texts[0], init_from='s3://bucket/run') == 2
  assert 'gs:// is the only object store' in capsys.readouterr().err
  assert _runs.run(workdir, texts[0], init_from='gs://lmjax-tests/nothing/here') == 2
  assert 'no such directory' in capsys.readouterr().err
  assert not store.names('runs/others'), 'a run that could not begin left something'


def test_without_gcsfs_the_extra_is_named(monkeypatch, texts, capsys):
  monkeypatch.setattr(bucket, '_CHECKED', set())
  find = importlib.util.find_spec
  monkeypatch.setattr(importlib.util, 'find_spec', lambda n: None if n == 'gcsfs' else find(n))
  assert _runs.run('gs://bucket/run', texts[0]) == 2
  assert "pip install 'lmjax[gcs]'" in capsys.readouterr().err


class _Denying(http.server.BaseHTTPRequestHandler):
  code = 403

  def do_GET(self):
    body = json.dumps({'error': {'code': self.code, 'message': 'no storage.objects.list'}}).encode()
    self.send_response(self.code)
    self.send_header('Content-Length', str(len(body)))
    self.end_headers()
    self.wfile.write(body)

  def log_message(self, *_):
    pass


@pytest.mark.parametrize('code', [401, 403])
def test_a_bucket_of_somebody_else(store, monkeypatch, texts, capsys, code):
  monkeypatch.setattr(_Denying, 'code', code)
  server = http.server.HTTPServer(('127.0.0.1', 0), _Denying)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  monkeypatch.setenv('STORAGE_EMULATOR_HOST', f'http://127.0.0.1:{server.server_port}')
  assert _runs.run('gs://their-bucket/run', texts[0]) == 2
  server.shutdown()
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 1 and "you may not list the bucket 'their-bucket'" in lines[0], lines


@pytest.mark.parametrize('named', ['', '/no/such.json'])
def test_without_credentials_one_is_told_to_log_in(store, monkeypatch, named):
  monkeypatch.setenv('GOOGLE_APPLICATION_CREDENTIALS', named)
  denied = bucket._why('theirs', OSError('Forbidden: o\nAnonymous caller'))
  assert 'without credentials, and none were found' in denied and 'application-default' in denied
  assert ("GOOGLE_APPLICATION_CREDENTIALS='/no/such.json' has none" in denied) == bool(named)


def test_a_store_where_nothing_listens(store, monkeypatch, texts, capsys):
  address = f'http://127.0.0.1:{_processes.port()}'
  monkeypatch.setenv('STORAGE_EMULATOR_HOST', address)
  monkeypatch.setattr(bucket, 'SECONDS', 4.0)  # tries at 0, 1 and 3 s; the next pause is too long
  start = time.monotonic()
  assert _runs.run('gs://far-bucket/run', texts[0]) == 2
  assert 1 < time.monotonic() - start < 4
  (line,) = capsys.readouterr().err.splitlines()
  assert "'gs://far-bucket/run'" in line and f'nothing can be reached at {address} (' in line
  assert line.endswith('start the emulator there, or unset STORAGE_EMULATOR_HOST')


def test_a_store_that_does_not_answer(store, monkeypatch, texts, capsys):
  monkeypatch.setattr(bucket, 'SECONDS', 1.0)
  with socket.create_server(('127.0.0.1', 0)) as silent:
    address = f'http://127.0.0.1:{silent.getsockname()[1]}'
    monkeypatch.setenv('STORAGE_EMULATOR_HOST', address)
    assert _runs.run('gs://far-bucket/run', texts[0]) == 2
  assert f'nothing answered at {address} within 1 s; start the emu' in capsys.readouterr().err


def test_no_network_is_told_with_what_to_do(store, monkeypatch):
  monkeypatch.delenv('STORAGE_EMULATOR_HOST', raising=False)
  import requests

  said = bucket._why('far', requests.exceptions.ConnectionError('no route'))
  assert said.startswith(
    'nothing can be reached at https://storage.googleapis.com (no route); look'
  )
  assert 'gcloud auth application-default login' in said and 'STORAGE_EMULATOR_HOST' in said


def test_credentials_that_are_looked_for_too_long(store, monkeypatch, texts, capsys):
  waiting = functools.cache(lambda: time.sleep(3))
  monkeypatch.setattr(bucket, '_fs', waiting)
  monkeypatch.setattr(bucket, 'SECONDS', 1.0)
  assert _runs.run('gs://far-bucket/run', texts[0]) == 2
  assert 'nobody answered within 1 s' in capsys.readouterr().err


def test_a_store_that_comes_late_is_waited_for(store, monkeypatch):
  """On a machine of Google's as long as gcsfs itself would; elsewhere too, but shorter."""
  port, server = _processes.port(), []
  monkeypatch.setenv('STORAGE_EMULATOR_HOST', f'http://127.0.0.1:{port}')

  class Empty(_Denying):
    code = 200

  def later():
    server.append(http.server.HTTPServer(('127.0.0.1', port), Empty))
    server[0].serve_forever()

  timer = threading.Timer(0.5, later)
  timer.start()
  bucket.place('gs://late-bucket/run')
  server[0].shutdown()


def test_later_requests_are_tried_as_often_as_gcsfs_does(store):
  """Only the first contact is in a hurry."""
  fs = bucket._fs()
  assert fs.retries == type(fs).retries >= 6 and fs.requests_timeout is None
  assert inspect.unwrap(type(fs)._request) is not type(fs)._request


def test_a_place_that_is_not_googles_is_not_asked_again(store, monkeypatch):
  """gcsfs alone asks the metadata server of Google's machines for 15 s, after google.auth did."""
  import fsspec
  import google.auth

  asked = []

  def default(**_):
    asked.append(1)
    raise google.auth.exceptions.DefaultCredentialsError('none')

  monkeypatch.delenv('NO_GCE_CHECK', raising=False)
  monkeypatch.delenv('STORAGE_EMULATOR_HOST', raising=False)
  monkeypatch.setattr(google.auth, 'default', default)
  monkeypatch.setattr(fsspec.config, 'conf', {})
  start = time.monotonic()
  with monkeypatch.context() as patch:
    patch.setattr('gcsfs.GCSFileSystem._cache', {})
    fs = bucket._fs.__wrapped__()
  assert fs.credentials.credentials is None and asked == [1] and time.monotonic() - start < 3
