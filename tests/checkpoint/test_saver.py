"""Checkpoints on real files: exact round trips, strictness, retention, kills, background failures
and how a caller goes on after them.
"""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lmjax.checkpoint import CheckpointError, Checkpointer
from lmjax.checkpoint import manifest
from lmjax.checkpoint import scan
from lmjax.checkpoint import tree as tree_lib


@flax.struct.dataclass
class State:
  step: Any
  params: Any
  vars: Any
  opt: Any
  skipped: Any
  rng: Any = None


class Extra(NamedTuple):
  slow: Any
  none: Any


def _state(seed=0):
  k = jax.random.key(seed)
  params = {
    'block': {
      'kernel': jax.random.normal(k, (4, 3)).astype(jnp.bfloat16),
      'a/b.c': jnp.arange(3, dtype=jnp.int8),
    },
    'list': [jnp.float16(seed + 0.5), (jnp.array([True, False]), None)],
    'none': None,
    'empty': {},
    '': jnp.ones(1),
    'a%/b': jnp.ones(2),
  }
  tx = optax.chain(optax.clip(1.0), optax.adam(1e-3))
  opt = {
    'main': tx.init({'w': jnp.full((2, 2), seed, jnp.float32)}),
    'extra': Extra(jnp.uint32(2**32 - 1), None),
  }
  return State(jnp.int32(seed), params, {}, opt, jnp.int32(0), k)


def _like(state, sharding=None):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state)


def _assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
    assert (x.dtype, x.shape) == (y.dtype, y.shape)
    if tree_lib.is_key(x):
      x, y = jax.random.key_data(x), jax.random.key_data(y)
    assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def _save(directory, *steps, scores=None, **kw):
  with Checkpointer(directory, **kw) as c:
    for s in steps:
      c.save(s, _state(s), {'step': s}, scores=None if scores is None else {'loss': scores[s]})


# ------------------------------------------------------------------ round trip


def test_round_trip_is_bit_exact(tmp_path):
  """bf16, int8, uint32, bool, typed keys, scalars, None, empty dictionaries, tuples, lists, named
  tuples, odd names.
  """
  with Checkpointer(tmp_path / 'c') as c:
    c.save(3, _state(3), {'epoch': 1, 'policy': [0.1, 0.2]}, {'loss': 2.0})
    c.wait()
    restored, cursor = c.restore(3, _like(_state()))
  _assert_same(restored, _state(3))
  assert cursor == {'epoch': 1, 'policy': [0.1, 0.2]}
  assert jax.random.key_impl(restored.rng) == jax.random.key_impl(jax.random.key(0))


def test_a_donating_step_cannot_reach_into_a_save(tmp_path):
  step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
  state = {'w': jnp.zeros((512, 512)), 'host': np.zeros(4)}
  with Checkpointer(tmp_path) as c:
    for i in (1, 2, 3):
      host = state['host']
      c.save(i, state, {})
      state = dict(step({'w': state['w']}), host=host)
      host += 1  # the caller's own array, changed in place while the save runs
      jax.block_until_ready(step({'w': state['w'] * 1}))
    c.wait()
    for i in (2, 3):
      out = c.restore_params(i)
      assert (out['w'] == i - 1).all() and (out['host'] == i - 1).all()


def test_host_numbers_keep_their_64_bits(tmp_path):
  """JAX in its 32-bit mode would cut them without a word."""
  state = {
    'python': 2**40,
    'real': 0.1,
    'numpy': np.array([2**40 + 1]),
    'weights': np.array([1 / 3]),
    'jax': jnp.ones(2),
  }
  with Checkpointer(tmp_path) as c:
    c.save(1, state, {})
  out, _ = Checkpointer(tmp_path).restore(1, state)
  assert [np.asarray(out[k]).item() for k in ('python', 'real', 'numpy', 'weights')] == [
    2**40,
    0.1,
    2**40 + 1,
    1 / 3,
  ]
  assert {k: str(v.dtype) for k, v in out.items()} == {
    'python': 'int64',
    'real': 'float64',
    'numpy': 'int64',
    'weights': 'float64',
    'jax': 'float32',
  }
  assert isinstance(out['jax'], jax.Array)


def test_parameters_can_be_read_without_classes(tmp_path):
  _save(tmp_path, 3)
  out = Checkpointer(tmp_path).restore_params(3)
  assert out['params']['empty'] == {} == out['vars']
  assert (
    type(out['params']['block']['kernel']) is np.ndarray
    and out['params']['block']['kernel'].dtype == jnp.bfloat16
  )
  np.testing.assert_array_equal(
    out['params']['block']['kernel'], np.asarray(_state(3).params['block']['kernel'])
  )
  assert out['opt']['main']['1']['0']['mu']['w'].shape == (2, 2)
  assert (
    sorted(out['params']['block']) == ['a/b.c', 'kernel'] and {'', 'a%/b'} <= out['params'].keys()
  )
  assert out['params']['list']['1']['0'].tolist() == [True, False]
  part = Checkpointer(tmp_path).restore_params(3, only=('params', 'vars'))
  assert sorted(part) == ['params', 'vars']
  with pytest.raises(ValueError, match="'nets' is not in checkpoint .*it has opt, params"):
    Checkpointer(tmp_path).restore_params(3, only=('nets',))


def test_reading_writes_nothing(tmp_path):
  c = Checkpointer(tmp_path / 'none')
  assert c.latest() is None and c.best() is None and c.steps() == []
  with pytest.raises(ValueError, match='no complete checkpoint of step 4 .*complete steps: none'):
    c.restore(4, _like(_state()))
  assert not (tmp_path / 'none').exists()


def test_a_file_in_place_of_the_directory(tmp_path):
  (tmp_path / 'f').write_text('')
  with pytest.raises(ValueError, match='is a file'):
    Checkpointer(tmp_path / 'f')


# ------------------------------------------------------------------ strictness


def _change(**changes):
  like = _like(_state(1))
  return like.replace(params=like.params | changes)


S = jax.ShapeDtypeStruct


@pytest.mark.parametrize(
  'like, message',
  [
    (
      lambda: _change(block={'kernel': S((4, 3), jnp.float32), 'a/b.c': S((3,), jnp.int8)}),
      r'params/block/kernel is bfloat16\[4,3\] in the checkpoint and float32\[4,3\] here',
    ),
    (
      lambda: _change(block={'kernel': S((3, 4), jnp.bfloat16), 'a/b.c': S((3,), jnp.int8)}),
      r'params/block/kernel is bfloat16\[4,3\] in the checkpoint and bfloat16\[3,4\] here',
    ),
    (
      lambda: _change(new=S((), jnp.int32)),
      r'params/new is int32\[\] here and absent from the checkpoint',
    ),
    (
      lambda: _change(block={'kernel': S((4, 3), jnp.bfloat16)}),
      r'params/block/a%2Fb.c is int8\[3\] in the checkpoint and absent',
    ),
    (
      lambda: _like(_state(1)).replace(rng=S((2,), jnp.uint32)),
      r'rng is key<fry>\[\] in the checkpoint and uint32\[2\] here',
    ),
  ],
)
def test_what_does_not_fit_is_refused(tmp_path, like, message):
  _save(tmp_path, 1)
  with pytest.raises(ValueError, match=message):
    Checkpointer(tmp_path).restore(1, like())


def test_a_cursor_that_is_not_json_is_refused_before_anything_is_written(tmp_path):
  with Checkpointer(tmp_path / 'c') as c:
    with pytest.raises(ValueError, match='cursor'):
      c.save(1, _state(), {'a': np.zeros(2)})
  assert not (tmp_path / 'c').exists()


# ------------------------------------------------------------------ retention


def test_retention_keeps_last_every_and_best(tmp_path):
  scores = {s: abs(s - 3) for s in range(1, 11)}
  _save(tmp_path, *range(1, 11), scores=scores, keep_last=2, keep_every=4)
  c = Checkpointer(tmp_path)
  assert c.steps() == [3, 4, 8, 9, 10] and c.best() == 3 and c.latest() == 10
  assert sorted(os.listdir(tmp_path)) == sorted(map(str, c.steps()))
  assert c.scores(3) == {'loss': 0.0}


def test_retention_without_best_and_with_nan(tmp_path):
  _save(tmp_path / 'a', 1, 2, 3, scores={1: 0.0, 2: 1.0, 3: 2.0}, keep_last=1, keep_best=False)
  assert Checkpointer(tmp_path / 'a').steps() == [3]
  _save(tmp_path / 'b', 1, 2, 3, scores={1: float('nan'), 2: 1.0, 3: 2.0}, keep_last=1)
  assert Checkpointer(tmp_path / 'b').steps() == [2, 3]
  _save(tmp_path / 'c', 1, 2, 3, keep_last=0)
  assert Checkpointer(tmp_path / 'c').steps() == [1, 2, 3]


def test_retention_never_takes_what_it_did_not_write(tmp_path):
  _save(tmp_path, 1, 2)
  (tmp_path / '1' / 'notes.txt').write_text('mine')
  (tmp_path / '0').mkdir()
  (tmp_path / '0' / 'weights.bin').write_text('theirs')
  (tmp_path / 'best_model').mkdir()
  _save(tmp_path, 3, 4, keep_last=1)
  assert Checkpointer(tmp_path).steps() == [4]
  assert (tmp_path / '1' / 'notes.txt').exists() and os.listdir(tmp_path / '1') == ['notes.txt']
  assert (tmp_path / '0' / 'weights.bin').exists() and (tmp_path / 'best_model').exists()


def test_an_interrupted_deletion_is_finished_later(tmp_path, caplog):
  _save(tmp_path, 1, 2)
  (tmp_path / '1' / manifest.NAME).rename(tmp_path / '1' / manifest.DOOMED)
  assert Checkpointer(tmp_path).steps() == [2]
  assert not caplog.records
  _save(tmp_path, 3)
  assert not (tmp_path / '1').exists()


@pytest.mark.parametrize('order', [(1, 2, 3), (2, 1, 3), (3, 2, 1)])
def test_a_nan_score_is_never_the_best(order):
  scores = {1: float('nan'), 2: 2.0, 3: 1.0}
  assert scan.best({s: {'scores': {'loss': scores[s]}} for s in order}, 'loss') == 3
  assert scan.best({1: {'scores': {'loss': scores[1]}}, 2: {'scores': {}}}, 'loss') is None


def test_the_step_just_saved_is_kept_beside_newer_ones(tmp_path):
  """A run that went back and saves step 2 while 5 is still there."""
  _save(tmp_path, 1, 5, keep_last=1, keep_best=False)
  _save(tmp_path, 2, keep_last=1, keep_best=False)
  assert Checkpointer(tmp_path).steps() == [2, 5]


@pytest.mark.parametrize('key', ['keep_last', 'keep_every'])
def test_retention_refuses_negative_numbers(tmp_path, key):
  with pytest.raises(ValueError, match=f'{key}=-1 is negative'):
    Checkpointer(tmp_path, **{key: -1})


# ------------------------------------------------------------------ saving again


def test_a_step_is_saved_once_and_its_scores_are_updated(tmp_path):
  with Checkpointer(tmp_path) as c:
    c.save(1, _state(1), {})
    c.save(1, _state(2), {}, {'loss': 4.0})
    assert c.scores(1) == {'loss': 4.0} and c.best() == 1
  assert int(Checkpointer(tmp_path).restore_params(1)['step']) == 1
  assert manifest.verify(tmp_path / '1') == []


def test_a_resumed_run_does_not_rewrite_the_step_it_came_from(tmp_path):
  _save(tmp_path, 1)
  before = (tmp_path / '1' / manifest.NAME).stat().st_mtime_ns
  with Checkpointer(tmp_path) as c:
    state, cursor = c.restore(1, _like(_state()))
    c.save(1, state, cursor)
  assert (tmp_path / '1' / manifest.NAME).stat().st_mtime_ns == before


def test_another_run_moves_what_is_there_aside(tmp_path):
  _save(tmp_path, 1)
  (tmp_path / '2').mkdir()
  (tmp_path / '2' / 'notes').write_text('mine')
  _save(tmp_path, 1, 2)
  assert Checkpointer(tmp_path).steps() == [1, 2]
  assert manifest.verify(tmp_path / 'replaced-1-0') == []
  assert (tmp_path / 'incomplete-2-0' / 'notes').read_text() == 'mine'


# ------------------------------------------------------------------ going back


def test_another_course_puts_newer_steps_aside(tmp_path):
  """The same step is then saved anew: it is no longer the one that this object saved before."""
  with Checkpointer(tmp_path, keep_last=0) as c:
    for s in (1, 2, 3):
      c.save(s, _state(s), {})
    c.set_aside(after=1)  # while step 3 is still being written
    assert c.steps() == [1] and c.latest() == 1
    c.save(2, _state(7), {})
    c.save(1, _state(7), {})
  assert int(Checkpointer(tmp_path).restore_params(2)['step']) == 7
  assert int(Checkpointer(tmp_path).restore_params(1)['step']) == 1
  assert (
    manifest.verify(tmp_path / 'replaced-2-0') == [] == manifest.verify(tmp_path / 'replaced-3-0')
  )


def test_a_failed_save_does_not_stop_a_run_from_going_back(tmp_path, monkeypatch):
  c = Checkpointer(tmp_path)
  c.save(1, _state(1), {})
  c.wait()
  with monkeypatch.context() as m:
    m.setattr(manifest, 'write', _full)
    c.save(2, _state(2), {})
    c.set_aside(after=1)
  c.save(2, _state(3), {})
  c.close()
  assert c.steps() == [1, 2] and int(c.restore_params(2)['step']) == 3


def test_the_cursor_can_be_read_alone(tmp_path):
  _save(tmp_path, 4)
  c = Checkpointer(tmp_path)
  assert c.cursor(4) == {'step': 4}
  with pytest.raises(ValueError, match='no complete checkpoint of step 5'):
    c.cursor(5)


# ------------------------------------------------------------------ failures and kills


def _full(*_, **__):
  raise OSError(28, 'No space left on device')


def test_a_background_failure_is_raised_by_the_next_call(tmp_path, monkeypatch):
  c = Checkpointer(tmp_path)
  with monkeypatch.context() as m:
    m.setattr(manifest, 'write', _full)
    c.save(1, _state(1), {})  # returns: the failure comes later
    c._thread.join()
    with pytest.raises(CheckpointError, match='saving step 1 to .* No space left'):
      c.poll()
    c.poll()  # raised once
    assert c.steps() == []
    c.save(2, _state(2), {})
    with pytest.raises(CheckpointError, match='saving step 2'):
      c.save(3, _state(3), {})
    c.save(3, _state(3), {})
    with pytest.raises(CheckpointError, match='saving step 3'):
      c.close()
  with Checkpointer(tmp_path) as c:  # the run goes on after room was made
    c.save(1, _state(1), {})
    c.wait()
    assert c.steps() == [1]


def test_a_failure_of_orbax_itself_is_raised(tmp_path):
  """The directory vanishes behind a file while the arrays are being written."""
  c = Checkpointer(tmp_path / 'c')
  (tmp_path / 'c').write_text('in the way')
  with pytest.raises(CheckpointError, match='saving step 1 to'):
    c.save(1, _state(1), {})
    c.wait()


def test_saves_go_on_once_the_directory_can_be_written_again(tmp_path):
  """The same object, the step that failed and the next one; nothing is left of the failure."""
  c = Checkpointer(tmp_path / 'c')
  (tmp_path / 'c').write_text('in the way')
  for _ in range(2):
    with pytest.raises(CheckpointError, match=f'saving step 1 to {tmp_path}/c failed'):
      c.save(1, _state(1), {})
      c.wait()
  assert (tmp_path / 'c').read_text() == 'in the way'
  (tmp_path / 'c').unlink()
  c.save(1, _state(1), {})
  c.save(2, _state(2), {})
  c.close()
  assert c.steps() == [1, 2] and sorted(os.listdir(tmp_path / 'c')) == ['1', '2']


def test_a_full_disk_is_free_again_after_the_failure_and_saves_go_on(tmp_path):
  """Orbax fails in the background where a file may not grow; what it had written is its own."""
  child = _python(f"""
      import os, resource, jax.numpy as jnp, numpy as np
      from lmjax.checkpoint import Checkpointer, CheckpointError
      directory = {str(tmp_path)!r}
      big = {{'w': np.random.default_rng(0).random((500, 500))}}
      c = Checkpointer(directory)
      c.save(1, big, {{}})
      c.wait()
      os.mkdir(directory + '/20.orbax-checkpoint-tmp')  # of someone else
      resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
      for step in (2, 3):
        try:
          c.save(step, big, {{}})
          c.wait()
        except CheckpointError as e:
          assert str(e).startswith(f'saving step {{step}} to ') and 'File too large' in str(e), e
      print(sorted(os.listdir(directory)))
      resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
      c.save(3, big, {{}})
      c.save(4, big, {{}})
      c.close()
      print(c.steps(), c.latest_whole(), (c.restore_params(4)['w'] == big['w']).all())
      """)
  out = child.communicate(timeout=120)[0].splitlines()
  assert out == ["['1', '20.orbax-checkpoint-tmp']", '[3, 4] 4 True']


def test_what_was_there_before_a_failed_save_stays(tmp_path, monkeypatch):
  """Room could not be made: the unfinished save of another is not this one's to delete."""
  left = tmp_path / '2.orbax-checkpoint-tmp'
  left.mkdir()
  (left / 'file').write_text('theirs')

  def forbidden(*_):
    raise PermissionError(13, 'Permission denied')

  c = Checkpointer(tmp_path)
  with monkeypatch.context() as m:
    m.setattr(type(c.directory), 'rename', forbidden)
    with pytest.raises(CheckpointError, match='saving step 2 .*Permission denied'):
      c.save(2, _state(2), {})
  assert (left / 'file').read_text() == 'theirs'


def test_a_failure_to_add_scores_is_a_failed_save(tmp_path, monkeypatch):
  c = Checkpointer(tmp_path)
  c.save(1, _state(1), {})
  c.wait()
  with monkeypatch.context() as m:
    m.setattr(manifest, 'put', _full)
    with pytest.raises(CheckpointError, match='scores of step 1 to .*No space left'):
      c.save(1, _state(1), {}, {'loss': 1.0})
  c.save(1, _state(1), {}, {'loss': 2.0})
  assert c.scores(1) == {'loss': 2.0}


def test_scores_join_a_save_without_waiting_for_it(tmp_path, monkeypatch):
  """While its files are hashed, between that and the next call, and once it is over."""
  write, go = manifest.write, threading.Event()
  monkeypatch.setattr(manifest, 'write', lambda *a, **k: (go.wait(20), write(*a, **k)))
  with Checkpointer(tmp_path) as c:
    c.save(1, _state(1), {}, {'other': 3.0})
    c.score(1, {'loss': 1.0})
    c.score(7, {'loss': 0.0})  # of a step that it never saved
    assert c.steps() == []
    go.set()
    c._thread.join()
    assert c.scores(1) == {'other': 3.0, 'loss': 1.0}
    c.score(1, {'loss': 2.0})
    c.wait()
    assert c.scores(1) == {'other': 3.0, 'loss': 2.0}
    c.score(1, {'loss': 3.0})
    assert c.scores(1) == {'other': 3.0, 'loss': 3.0} and c.best() == 1


@pytest.mark.parametrize('late', [False, True])
def test_scores_that_cannot_join_a_save_are_its_failure(tmp_path, monkeypatch, late):
  put, go = manifest.put, threading.Event()
  write = manifest.write
  monkeypatch.setattr(manifest, 'write', lambda *a, **k: (go.wait(20), write(*a, **k)))
  c = Checkpointer(tmp_path)
  c.save(1, _state(1), {})
  first = lambda where, body: put(where, body) if not body['scores'] else _full()
  monkeypatch.setattr(manifest, 'put', first)
  if late:
    go.set()
    c._thread.join()
  c.score(1, {'loss': 1.0})
  go.set()
  with pytest.raises(CheckpointError, match='saving step 1 .*No space left'):
    c.wait()
  monkeypatch.setattr(manifest, 'put', put)
  c.save(2, _state(2), {})
  c.close()
  assert c.steps() == [1, 2]


def test_the_time_that_saves_take_is_known(tmp_path, monkeypatch):
  """`blocked` is what the caller waited, `last_seconds` what the disk needed."""
  write = manifest.write
  monkeypatch.setattr(manifest, 'write', lambda *a, **k: (time.sleep(0.5), write(*a, **k)))
  with Checkpointer(tmp_path) as c:
    assert c.blocked == 0 and c.last_seconds is None
    start = time.monotonic()
    c.save(1, _state(1), {})
    first = c.blocked
    assert 0 < first <= time.monotonic() - start and c.last_seconds is None
    c.wait()
    assert first + 0.4 < c.blocked <= time.monotonic() - start
    assert 0.5 < c.last_seconds <= time.monotonic() - start
    c.save(2, _state(2), {})
    assert c.blocked < 0.4
    c.save(3, _state(3), {})  # waits for step 2
    assert 0.4 < c.blocked
    c.wait()
    monkeypatch.setattr(manifest, 'write', _full)
    before = c.last_seconds
    c.save(4, _state(4), {})
    with pytest.raises(CheckpointError):
      c.wait()
    assert c.last_seconds == before  # of the last complete one


def test_save_returns_before_the_manifest_is_there(tmp_path, monkeypatch, caplog):
  """Hashing happens in the background, and a step under way is neither offered nor warned of."""
  write = manifest.write
  monkeypatch.setattr(manifest, 'write', lambda *a, **k: (time.sleep(1.0), write(*a, **k)))
  with Checkpointer(tmp_path) as c:
    c.save(1, _state(1), {})
    while not (tmp_path / '1').exists():  # orbax has finished, the manifest is not written
      time.sleep(0.01)
    assert c.steps() == [] and not (tmp_path / '1' / manifest.NAME).exists()
    assert not caplog.records
    c.poll()
    c.wait()
    assert c.steps() == [1]


def _python(code, **env):
  return subprocess.Popen(
    [sys.executable, '-c', textwrap.dedent(code)],
    stdout=subprocess.PIPE,
    text=True,
    env=os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''} | env,
  )


@pytest.mark.parametrize('where', ['arrays', 'manifest'])
def test_a_kill_in_the_middle_of_a_save_costs_only_that_save(tmp_path, where):
  # Either orbax never gets to rename its directory into place, or we never to write the manifest.
  patch = {
    'arrays': 'type(c.directory).rename = lambda *a: time.sleep(99)',
    'manifest': 'manifest.write = lambda *a, **k: time.sleep(99)',
  }[where]
  child = _python(f"""
      import time, jax.numpy as jnp
      from lmjax.checkpoint import manifest
      from lmjax.checkpoint import Checkpointer
      c = Checkpointer({str(tmp_path)!r})
      c.save(1, {{'w': jnp.ones(8)}}, {{}})
      c.wait()
      {patch}
      c.save(2, {{'w': jnp.ones((2000, 2000))}}, {{}})
      print('saving', flush=True)
      time.sleep(99)
      """)
  assert child.stdout.readline() == 'saving\n'
  begun, left = time.monotonic(), []
  while not left and time.monotonic() < begun + 60:  # the save goes on beside it
    time.sleep(0.1)
    left = [n for n in os.listdir(tmp_path) if n.startswith('2')]
  child.send_signal(signal.SIGKILL)
  child.wait()
  c = Checkpointer(tmp_path)
  assert c.latest() == 1
  left = [n for n in os.listdir(tmp_path) if n.startswith('2')]
  assert left
  c.save(2, {'w': jnp.full(8, 2.0)}, {})
  c.close()
  assert c.steps() == [1, 2] and (c.restore_params(2)['w'] == 2).all()
  assert any(n.startswith('incomplete-2-') for n in os.listdir(tmp_path))


# ------------------------------------------------------------------ other devices


def test_one_device_to_eight_and_back(tmp_path):
  state = {'w': jnp.arange(64, dtype=jnp.float32).reshape(8, 8), 's': jnp.int32(5)}
  with Checkpointer(tmp_path) as c:
    c.save(1, state, {'a': 1})
  child = _python(
    f"""
      import jax, numpy as np, jax.numpy as jnp
      from jax.sharding import PartitionSpec as P, NamedSharding
      from lmjax.checkpoint import Checkpointer
      mesh = jax.make_mesh((4, 2), ('data', 'model'))
      put = lambda spec: NamedSharding(mesh, spec)
      like = {{'w': jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=put(P('model', 'data'))),
               's': jax.ShapeDtypeStruct((), jnp.int32, sharding=put(P()))}}
      with Checkpointer({str(tmp_path)!r}) as c:
        state, cursor = c.restore(1, like)
        assert len(state['w'].sharding.device_set) == 8
        assert state['w'].sharding.spec == P('model', 'data')
        np.testing.assert_array_equal(state['w'], np.arange(64.).reshape(8, 8))
        c.save(2, jax.tree.map(lambda x: x + 1, state), cursor)
      print('ok')
      """,
    XLA_FLAGS='--xla_force_host_platform_device_count=8',
  )
  assert child.communicate()[0] == 'ok\n'
  out, _ = Checkpointer(tmp_path).restore(2, _like(state))
  np.testing.assert_array_equal(out['w'], np.asarray(state['w']) + 1)
  assert len(out['w'].devices()) == 1
  assert (Checkpointer(tmp_path).restore_params(2)['w'] == np.asarray(state['w']) + 1).all()


def test_two_processes_save_and_restore_as_one(tmp_path):
  """Each holds half of an array; the first writes the manifest, and all learn of its failure."""
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  code = f"""
      import jax, numpy as np
      jax.distributed.initialize('localhost:{port}', 2, {{}})
      from jax.sharding import NamedSharding, PartitionSpec as P
      from lmjax.checkpoint import manifest
      from lmjax.checkpoint import Checkpointer
      mesh = jax.make_mesh((2,), ('data',))
      half = NamedSharding(mesh, P('data'))
      w = jax.make_array_from_callback((4,), half, lambda i: np.arange(4, dtype=np.float32)[i])
      mine = lambda x: np.asarray(x.addressable_data(0))
      c = Checkpointer({str(tmp_path)!r}, keep_last=1)
      for step in (1, 2):
        c.save(step, {{{{'w': w}}}}, {{{{'step': step}}}}, {{{{'loss': -step}}}})
      c.wait()
      assert (c.steps(), c.latest(), c.best()) == ([2], 2, 2), c.steps()
      out, cursor = c.restore(2, {{{{'w': jax.ShapeDtypeStruct((4,), w.dtype, sharding=half)}}}})
      assert cursor == {{{{'step': 2}}}} and (mine(out['w']) == mine(w)).all()
      try:
        c.restore(2, {{{{'w': jax.ShapeDtypeStruct((5,), w.dtype)}}}})
      except ValueError as e:
        print('refused' if 'float32[5] here' in str(e) else e)
      def full(*_, **__):
        raise OSError('No space left')
      if jax.process_index() == 0:
        manifest.write = full
      try:
        c.save(3, {{{{'w': w}}}}, {{{{}}}})
        c.close()
      except RuntimeError as e:
        print('failed' if 'No space left' in str(e) else e)
      """
  children = [_python(textwrap.dedent(code).format(i)) for i in (0, 1)]
  outs = [c.communicate(timeout=120)[0] for c in children]
  for out in outs:
    assert out.splitlines()[-2:] == ['refused', 'failed'], outs
