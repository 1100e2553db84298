"""The optimizer's state waits in the host's memory: the same numbers, the same checkpoints."""

import contextlib
import functools

import jax
from jax.sharding import NamedSharding
import numpy as np
import pytest

import _meshes
import _table
from lmjax import build
from lmjax import config
from lmjax import recompute
from lmjax import restore
from lmjax.checkpoint import Checkpointer
from lmjax.parallel import mesh as mesh_lib
from lmjax.parallel import shard

STEPS = 3
SMALL = (
  ('model.width', '32'),
  ('model.depth', '2'),
  ('model.mixer.head_dim', '8'),
  ('data.length', '16'),
  ('batch_tokens', '128'),
  ('optim', 'clip(norm=1.0) | adam(b2=0.95) | decay(rate=0.1)'),
)
AWAY = ('offload', 'optimizer')
# As programs are compiled outside of tests (see conftest.py): to the bit is a promise of those.
OPTIONS = {'xla_cpu_use_fusion_emitters': True} if jax.__version__.startswith('0.10.') else None


@functools.cache
def run(*more) -> build.Run:
  return build.build(config.resolve(config.load('quickstart', [*SMALL, *more])))


def batch(i):
  segments = np.ones((8, 17), np.int32)
  segments[::2, 9:] = 2
  tokens = np.random.default_rng(i).integers(0, 256, (8, 17)).astype(np.int32)
  rows = dict(tokens=tokens, segments=segments, positions=_table.positions_of(segments))
  mesh = jax.sharding.get_mesh()
  return (
    rows if mesh.empty else jax.device_put(rows, NamedSharding(mesh, shard.spec(('batch', None))))
  )


def steps(made, state, first=0, last=STEPS):
  shardings = made.shardings()
  out = None if shardings is None else (shardings, None)
  step = jax.jit(made.step, donate_argnums=0, out_shardings=out, compiler_options=OPTIONS)
  losses = []
  for i in range(first, last):
    state, metrics = step(state, batch(i), jax.random.key(1))
    losses.append(float(metrics['loss'][0]))
  return state, losses


def kinds(tree) -> set:
  return {(a.ndim > 0, a.sharding.memory_kind) for a in jax.tree.leaves(tree)}


def same(a, b):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.mark.parametrize(
  'how',
  ['one device', *(pytest.param(m, marks=pytest.mark.slow) for m in ('auto 4x2', 'explicit 4x2'))],
)
def test_training_is_the_same_to_the_bit_and_the_state_waits_on_the_host(how):
  mesh = None
  if how != 'one device':
    if jax.device_count() < 8:
      pytest.skip('eight devices are needed; on the CPU conftest.py simulates them')
    mesh = mesh_lib.make(_meshes.settings(how.split()[0], data=4, tensor=2))
  with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
    near, plain = steps(run(), run().init(jax.random.key(0)))
    first = run(AWAY).init(jax.random.key(0))
    assert kinds(first.opt) == {(True, 'pinned_host'), (False, 'device')}
    far, away = steps(run(AWAY), first)
    assert kinds(far.opt) == {(True, 'pinned_host'), (False, 'device')}
    assert kinds((far.params, far.step)) == {(True, 'device'), (False, 'device')}
    assert away == plain
    same(far, near)
    if mesh is not None:  # a piece on each host's memory, no more
      for a, b in zip(jax.tree.leaves(far.opt), jax.tree.leaves(near.opt), strict=True):
        assert a.sharding.shard_shape(a.shape) == b.sharding.shard_shape(b.shape)


@pytest.mark.parametrize('back', [True, False])
def test_a_checkpoint_goes_from_one_to_the_other(tmp_path, back):
  """A run may move its state out, or back in, when it is resumed."""
  one, other = (run(), run(AWAY)) if back else (run(AWAY), run())
  whole, losses = steps(one, one.init(jax.random.key(0)))
  half, _ = steps(one, one.init(jax.random.key(0)), 0, 2)
  with Checkpointer(tmp_path) as checkpoints:
    checkpoints.save(2, half, {})
    checkpoints.wait()
    found, _ = checkpoints.restore(2, restore.abstract_state(other))
  assert kinds(found.opt) == {(True, 'pinned_host' if back else 'device'), (False, 'device')}
  end, more = steps(other, found, 2)
  assert more == losses[2:]
  same(end, whole)


def test_steps_are_recomputed_with_the_state_away():
  made = run(AWAY)
  shardings = made.shardings()
  how = dict(out_shardings=(shardings, None), compiler_options=OPTIONS)
  twice = recompute.Recompute(jax.jit(made.step, donate_argnums=0, **how))
  state, _, wrong = twice(made.init(jax.random.key(0)), batch(0), jax.random.key(1))
  assert not wrong and kinds(state.opt) == {(True, 'pinned_host'), (False, 'device')}
  same(state, steps(made, made.init(jax.random.key(0)), 0, 1)[0])


def test_it_is_outside_the_fingerprint():
  assert config.fingerprint(run().config) == config.fingerprint(run(AWAY).config)


def test_a_refused_step_leaves_the_state_as_it_is():
  made, bad = run(AWAY), batch(0)
  state = made.init(jax.random.key(0))
  before = jax.device_get(state.opt)
  bad['segments'] = np.zeros_like(bad['segments'])  # all of it is padding: no weight
  out = (made.shardings(), None)
  state, _ = jax.jit(made.step, donate_argnums=0, out_shardings=out)(state, bad, jax.random.key(1))
  assert int(state.skipped) == 1
  same(state.opt, before)


def test_an_optimizer_that_needs_its_state_elsewhere_is_refused():
  with pytest.raises(ValueError, match='config.offload.*schedule_free'):
    run(AWAY, ('optim', 'schedule_free()'))


def test_other_words_are_refused():
  with pytest.raises(ValueError, match="config.offload='optimiser'.*did you mean 'optimizer'"):
    run(('offload', 'optimiser'))
