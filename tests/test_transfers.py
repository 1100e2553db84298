"""The loop never waits for the host: between steps no value is read from the device, none is put
there but batches; the step takes the memory of its state; compiled programs are kept.
"""

import contextlib

import jax
from jax._src import array
import numpy as np
import pytest

from lmjax import build
from lmjax import config
from lmjax import files
from lmjax import loop
from lmjax import main as main_lib
from lmjax import run as run_lib
from lmjax.profiling import measure

TINY = {
  'model.width': 16,
  'model.depth': 2,
  'model.mixer.head_dim': 8,
  'data.length': 16,
  'batch_tokens': 256,
  'micro_batches': 2,
  'steps': 12,
  'log_every': 4,
  'checkpoint_every': 0,
  'eval.every': 0,
  'sample.every': 0,
  'sample.tokens': 0,
  'tensorboard': 'false',
  'report': 'false',
}


class Guard:
  """Forbids what is not asked for in so many words. Where the device is a CPU, JAX's own guard lets
  all reads pass: they are watched here, at the places where an array becomes NumPy's, and so is
  waiting.
  """

  def __init__(self, monkeypatch):
    self.on, self.reads, self.asked = False, [], 0
    read, get = array.ArrayImpl._value, jax.device_get
    stretch, periodic = loop.Trainer._stretch, loop.Trainer._periodic

    def value(a):
      if self.on:
        self.reads.append('value')
      return read.fget(a)

    def watched(owner, name):
      fn = getattr(owner, name)

      def called(x, *args, **kwargs):
        if self.on and any(isinstance(a, jax.Array) for a in jax.tree.leaves(x)):
          self.reads.append(name)
        return fn(x, *args, **kwargs)

      monkeypatch.setattr(owner, name, called)

    def device_get(x):
      self.asked += self.on
      with self.held(False):
        return get(x)

    def guarded(trainer, *args):
      with self.held(True), jax.transfer_guard('disallow'):
        return stretch(trainer, *args)

    def allowed(trainer, *args):  # evaluations and saves may wait
      with self.held(False), jax.transfer_guard('allow'):
        return periodic(trainer, *args)

    for name in ('asarray', 'array'):  # by way of the buffer protocol
      watched(np, name)
    for owner in (jax, array.ArrayImpl):
      watched(owner, 'block_until_ready')
    monkeypatch.setattr(array.ArrayImpl, '_value', property(value))
    monkeypatch.setattr(jax, 'device_get', device_get)
    monkeypatch.setattr(loop.Trainer, '_stretch', guarded)
    monkeypatch.setattr(loop.Trainer, '_periodic', allowed)

  @contextlib.contextmanager
  def held(self, on: bool):
    before, self.on = self.on, on
    try:
      yield
    finally:
      self.on = before


@pytest.fixture
def guard(monkeypatch):
  return Guard(monkeypatch)


def train(tmp_path, **more):
  text = tmp_path / 'text.txt'
  text.write_text('To be, or not to be, that is the question.\n' * 40)
  given = TINY | {'data.train': f'text(path="{text}")', 'data.valid': ''} | more
  options = [f'--config.{k}={v}' for k, v in given.items()]
  return main_lib.main(['--config=quickstart', f'--workdir={tmp_path / "w"}', *options])


@pytest.mark.parametrize('mesh', [{}, {'mesh.data': 8}], ids=['one', 'mesh'])
def test_steps_read_nothing_that_is_not_asked_for(tmp_path, guard, mesh):
  assert train(tmp_path, **mesh) == 0
  assert guard.reads == []
  assert 1 < guard.asked <= 2 + TINY['steps'] // TINY['log_every']  # the counters, the first loss


READS = dict(
  float=float,
  item=lambda x: x.item(),
  format=lambda x: f'{x:.3f}',
  numpy=lambda x: np.asarray(x),
  wait=lambda x: x.block_until_ready(),
)


@pytest.mark.parametrize('reads', READS.values(), ids=READS)
def test_a_metric_read_in_each_step_is_found(tmp_path, guard, monkeypatch, reads):
  advance = loop.Trainer._advance

  def reading(trainer, state, batch, done):
    state, metrics = advance(trainer, state, batch, done)
    reads(metrics['loss'][0])
    return state, metrics

  monkeypatch.setattr(loop.Trainer, '_advance', reading)
  train(tmp_path, steps=4)
  assert len(guard.reads) >= 4


def test_a_value_put_on_the_device_in_each_step_is_refused(tmp_path, guard, monkeypatch):
  advance = loop.Trainer._advance

  def putting(trainer, state, batch, done):
    return advance(trainer, state.replace(step=done - 1), batch, done)

  monkeypatch.setattr(loop.Trainer, '_advance', putting)
  with pytest.raises(Exception, match='Disallowed host-to-device transfer'):
    train(tmp_path, steps=4)


@pytest.mark.parametrize(
  'more',
  [{}, {'optim': 'clip() | split(matrix=muon(), rest=adam())', 'guard': 'spikes()'}],
  ids=['adam', 'muon'],
)
def test_the_step_takes_the_memory_of_its_whole_state(more):
  keys = ('model.width', 'model.depth', 'model.mixer.head_dim', 'data.length', 'batch_tokens')
  given = {k: str(TINY[k]) for k in keys} | more
  run = build.build(config.resolve(config.load('quickstart', list(given.items()))))
  arguments = run.state_shapes, run.batch_shapes(), jax.random.key(0)
  program = loop.step_fn(run).lower(*arguments).compile()
  n = len(jax.tree.leaves(run.state_shapes))
  assert measure.donated(program.as_text(), run) == (n, n)


def test_a_state_that_is_not_donated_is_told():
  run = build.build(config.resolve(config.load('quickstart', [('model.width', '64')])))
  n = len(jax.tree.leaves(run.state_shapes))
  head = 'HloModule m, {}entry_computation_layout={{(f32[])->f32[]}}\n'
  assert measure.donated(head.format(''), run) == (0, n)
  some = 'input_output_alias={ {0}: (1, {}, may-alias), {2, 1}: (9999, {}, may-alias) }, '
  assert measure.donated(head.format(some), run) == (1, n)


@pytest.fixture
def no_cache(monkeypatch):
  """JAX as it starts: no place for compiled programs."""
  monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR', raising=False)
  before = jax.config.jax_compilation_cache_dir
  jax.config.update('jax_compilation_cache_dir', None)
  yield
  jax.config.update('jax_compilation_cache_dir', before)


def test_compiled_programs_are_kept_by_default(no_cache, tmp_path):
  assert train(tmp_path, steps=1) == 0
  assert jax.config.jax_compilation_cache_dir == str(files.cache() / 'xla')
  assert jax.config.jax_enable_compilation_cache


def test_a_place_that_the_user_chose_for_them_stays(no_cache, monkeypatch):
  jax.config.update('jax_compilation_cache_dir', 'mine')
  run_lib.compilation_cache()
  assert jax.config.jax_compilation_cache_dir == 'mine'
  jax.config.update('jax_compilation_cache_dir', None)
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', '')
  run_lib.compilation_cache()
  assert jax.config.jax_compilation_cache_dir is None
