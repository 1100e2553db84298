"""One model on no mesh, an auto mesh and an explicit mesh: the same losses, truly sharded state,
refusals by name.
"""

import contextlib
import functools

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import numpy as np
import pytest

import _meshes
import _table
from lmjax import build
from lmjax import config
from lmjax.parallel import mesh as mesh_lib
from lmjax.parallel import shard

pytestmark = pytest.mark.skipif(
  jax.device_count() < 8, reason='eight devices are needed; on the CPU conftest.py simulates them'
)
STEPS = 3
TOLERANCE = 2e-5  # relative, of losses: sums over devices are taken in another order
SETTINGS = (
  ('model.width', '32'),
  ('model.depth', '2'),
  ('data.length', '16'),
  ('batch_tokens', '256'),
  ('model.mixer', 'gqa(head_dim=8, kv_heads=2)'),
  ('model.ffn', 'swiglu(hidden=48, bias=True)'),
  ('model.position', 'learned()'),
  ('model.embed', 'untied(multiple_of=8)'),
  ('model.dropout', '0.1'),
  ('schedule', 'constant()'),
  ('peak_lr', '0.01'),
  ('micro_batches', '2'),
)
MESHES = {
  'auto 8': _meshes.settings(data=8),
  'auto 4x2': _meshes.settings(data=4, tensor=2),
  'explicit 2x2x2': _meshes.settings('explicit', replica=2, data=2, tensor=2),
}


@functools.cache
def run() -> build.Run:
  return build.build(config.resolve(config.load('quickstart', list(SETTINGS))))


def batch(i):
  rng = np.random.default_rng(i)
  segments = np.ones((16, 17), np.int32)
  segments[::2, 9:] = 2
  segments[5, 3:] = 0
  return dict(
    tokens=rng.integers(0, 256, (16, 17)).astype(np.int32),
    segments=segments,
    positions=_table.positions_of(segments),
  )


@functools.cache
def first():
  """The first state, made on one device, on the host."""
  return jax.tree.map(np.asarray, run().init(jax.random.key(0)))


def steps(mesh):
  """(losses, last state) of some steps."""
  with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
    shardings = run().shardings()
    state = (
      jax.tree.map(jnp.asarray, first()) if mesh is None else jax.device_put(first(), shardings)
    )
    step = jax.jit(
      run().step, donate_argnums=0, out_shardings=None if mesh is None else (shardings, None)
    )
    losses = []
    for _ in range(STEPS):
      rows = batch(0)
      if mesh is not None:
        rows = jax.device_put(rows, NamedSharding(mesh, shard.spec(('batch', None))))
      state, metrics = step(state, rows, jax.random.key(1))
      losses.append(float(metrics['loss'][0] / metrics['loss'][1]))
    return losses, state


@functools.cache
def alone():
  losses, state = steps(None)
  return losses, jax.tree.map(np.asarray, state)


@functools.cache
def on(name):
  mesh = mesh_lib.make(MESHES[name])
  losses, state = steps(mesh)
  return mesh, losses, state


def test_the_steps_alone_learn_something():
  losses, state = alone()
  assert losses[-1] < losses[0] - 0.05 and int(state.step) == STEPS and int(state.skipped) == 0
  shapes = lambda tree: jax.tree.map(lambda a: (a.shape, str(a.dtype)), tree)
  assert shapes(first()) == shapes(run().state_shapes)


@pytest.mark.parametrize('name', MESHES)
def test_a_mesh_does_not_change_the_training(name):
  _, losses, state = on(name)
  np.testing.assert_allclose(losses, alone()[0], rtol=TOLERANCE)
  for (path, got), want in zip(
    jax.tree_util.tree_leaves_with_path(state.params), jax.tree.leaves(alone()[1].params)
  ):
    # Adam divides by the size of the gradient, so that where it is tiny rounding shows; a wrong sum
    # moves parameters by the rate, 0.01
    np.testing.assert_allclose(got, want, atol=2e-4, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize('name', MESHES)
def test_parameters_and_moments_are_truly_sharded(name):
  mesh, _, state = on(name)
  d, t = mesh.shape.get('data', 1), mesh.shape.get('tensor', 1)

  def pieces(tree):
    return {
      jax.tree_util.keystr(p, simple=True, separator='/'): {
        s.data.shape for s in a.addressable_shards
      }
      for p, a in jax.tree_util.tree_leaves_with_path(tree)
    }

  layer = 'segment_0/0_block'
  want = {
    'embed/table': {(264 // t, 32 // d)},
    'embed/unembed': {(264 // t, 32 // d)},
    'position/table': {(16, 32 // d)},
    f'{layer}/mixer/q/kernel': {(2, 32 // d, 4 // t, 8)},
    f'{layer}/mixer/k/kernel': {(2, 32 // d, 2 // t, 8)},
    f'{layer}/mixer/out/kernel': {(2, 4 // t, 8, 32 // d)},
    f'{layer}/ffn/up/kernel': {(2, 32 // d, 48 // t)},
    f'{layer}/ffn/down/kernel': {(2, 48 // t, 32 // d)},
    f'{layer}/ffn/down/bias': {(2, 32 // d)},
    f'{layer}/ffn/up/bias': {(2, 48 // t)},
  }
  got = pieces(state.params)
  for key, shape in want.items():
    assert got[key] == shape, key
  opt = pieces(state.opt)
  for moment in ('mu', 'nu'):
    for key, shape in want.items():
      found = [v for k, v in opt.items() if k.endswith(key) and f'{moment}/' in k]
      assert found == [shape], (moment, key, found)


@pytest.mark.parametrize('name', ['auto 4x2', 'explicit 2x2x2'])
def test_the_first_state_is_made_sharded_and_equals_that_of_one_device(name):
  mesh = mesh_lib.make(MESHES[name])
  with jax.set_mesh(mesh):
    state = run().init(jax.random.key(0))
    for a, s in zip(jax.tree.leaves(state), jax.tree.leaves(run().shardings())):
      assert a.sharding.is_equivalent_to(s, a.ndim)
  for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(first())):
    np.testing.assert_allclose(np.asarray(a), b, rtol=1e-6, atol=1e-7)


def test_the_program_of_an_auto_mesh_carries_its_constraints():
  mesh = mesh_lib.make(MESHES['auto 4x2'])
  with jax.set_mesh(mesh):
    text = (
      jax.jit(run().step)
      .lower(run().state_shapes, run().batch_shapes(), jax.random.key(0))
      .as_text()
    )
  constraints = [l for l in text.splitlines() if 'sharding_constraint' in l or '@Sharding' in l]
  assert any('"data"' in l and 'tensor<8x16x32xf32>' in l for l in constraints), (
    'the activations of a layer'
  )
  assert any('"tensor"' in l and '"data"' in l and '8x16x48' in l for l in constraints), (
    'the hidden layer of the ffn'
  )
  plain = (
    jax.jit(run().step).lower(run().state_shapes, run().batch_shapes(), jax.random.key(0)).as_text()
  )
  assert '"data"' not in plain and '"tensor"' not in plain


# ---- the helpers


def test_without_a_mesh_everything_is_the_identity():
  x = jnp.ones((2, 3, 4))
  assert (
    shard.shard(x, 'batch', 'time', 'width') is x
    and shard.gather(x, ('layers', 'embed', 'mlp')) is x
  )
  assert not shard.is_explicit()


def test_specs_follow_the_rules():
  with jax.set_mesh(mesh_lib.make(MESHES['explicit 2x2x2'])):
    assert shard.is_explicit()
    assert shard.spec(('batch', 'time', 'width')) == P(('replica', 'data'), None, None)
    assert shard.spec(('embed', 'heads', 'head_dim')) == P('data', 'tensor', None)
    assert shard.spec(('embed', 'mlp'), gathered=True) == P(None, 'tensor')
    assert shard.spec((None, 'vocab')) == P(None, 'tensor')
    with pytest.raises(
      ValueError, match="no sharding rule for the axis 'widht'; known axes: batch"
    ):
      shard.spec(('widht',))
    with pytest.raises(ValueError, match="'heads' and 'mlp' .*both claim the mesh axis 'tensor'"):
      shard.spec(('heads', 'mlp'))
    with pytest.raises(AssertionError):
      shard.shard(jnp.ones((2, 2)), 'batch')
  with jax.set_mesh(_meshes.make('explicit', data=2, expert=2, tensor=2)):
    assert shard.spec(('batch', 'width')) == P(('data', 'expert'), None)
    assert shard.spec(('expert', 'embed', 'mlp')) == P('expert', 'data', 'tensor')
    assert shard.spec(('expert', 'embed', 'mlp'), gathered=True) == P('expert', None, 'tensor')
  with jax.set_mesh(mesh_lib.make(MESHES['auto 8'])):
    assert not shard.is_explicit() and shard.spec(('batch', 'heads')) == P('data', None)


def test_a_parameter_that_does_not_divide_is_refused_by_name():
  mesh = mesh_lib.make(MESHES['auto 4x2'])
  odd = build.build(
    config.resolve(config.load('quickstart', [*SETTINGS, ('model.ffn', 'swiglu(hidden=45)')]))
  )
  with (
    jax.set_mesh(mesh),
    pytest.raises(
      ValueError,
      match="segment_0/0_block/ffn/down/kernel: axis 'mlp' of size 45 does not divide over 2 "
      'devices',
    ),
  ):
    odd.shardings()
  assert shard.pieces(mesh, ('embed', 'mlp'), (8, 6)) == (P('data', 'tensor'), (2, 3))


@pytest.mark.parametrize(
  'settings, words',
  [
    (dict(data=3), 'config.mesh asks for 3 devices'),
    (dict(data=-1, tensor=-1), 'only one axis may be -1'),
    (dict(data=0), 'config.mesh.data=0'),
    (dict(data=-1, tensor=3), '8 devices do not divide by 3'),
    (dict(data=8, mode='manual'), "config.mesh.mode='manual'"),
  ],
)
def test_meshes_that_cannot_be_are_refused(settings, words):
  with pytest.raises(ValueError, match=words):
    mesh_lib.make({**_meshes.settings(), **settings})


def test_meshes():
  one = _meshes.settings()
  assert mesh_lib.make(one) is None
  mesh = mesh_lib.make({**one, 'data': -1, 'tensor': 2, 'mode': 'explicit'})
  assert dict(mesh.shape) == {'data': 4, 'tensor': 2} and set(mesh.axis_types) == {
    AxisType.Explicit
  }
