"""What is offloaded leaves the memory of the device: compiled for a TPU slice, without a TPU."""

import importlib.util

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
import pytest

from lmjax import build
from lmjax import config
from lmjax.parallel import remat
from lmjax.parallel import shard

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(not importlib.util.find_spec('libtpu'), reason='libtpu is not installed'),
]
WIDTH, DEPTH, LENGTH, ROWS, CHIPS = 256, 4, 128, 256, 4


def slice_mesh():
  from jax.experimental import topologies

  try:
    devices = topologies.get_topology_desc('v5e:2x2', platform='tpu').devices
  except Exception as e:  # of many kinds: another process holds the library, say
    pytest.skip(f'libtpu cannot be used here: {str(e)[:100]}')
  return Mesh(devices, ('data',), axis_types=(AxisType.Auto,))


def memory(*changes):
  """The compiler's figures for the step of one chip of v5e:2x2."""
  settings = [
    ('model.width', str(WIDTH)),
    ('model.depth', str(DEPTH)),
    ('model.unroll', '1'),
    ('model.mixer', 'gqa(head_dim=128)'),
    ('model.dtype', 'bfloat16'),
    ('data.length', str(LENGTH)),
    ('batch_tokens', str(ROWS * LENGTH)),
    ('mesh.data', str(CHIPS)),
    *changes,
  ]
  run = build.build(config.resolve(config.load('quickstart', settings)))
  mesh = slice_mesh()
  place = lambda s, at: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=at)
  key = jax.eval_shape(lambda: jax.random.key(0))
  with jax.set_mesh(mesh):
    shardings = run.shardings()
    state = jax.tree.map(place, run.state_shapes, shardings)
    rows = NamedSharding(mesh, shard.spec(('batch', None)))
    batch = jax.tree.map(lambda s: place(s, rows), run.batch_shapes())
    step = jax.jit(run.step, donate_argnums=0, out_shardings=(shardings, None))
    traced = step.trace(state, batch, place(key, NamedSharding(mesh, P())))
    return traced.lower(lowering_platforms=('tpu',)).compile().memory_analysis()


def test_tensors_by_name():
  """Tensors of 320 MiB in all: less than 128 MiB could lie on the chip, beside its memory."""
  depth, width, rows = 16, 256, 32_768
  mesh = slice_mesh()

  def loss(kernels, x_ND, policy):
    def layer(x, w):
      x = remat.tag(x, 'layer_in')
      return x + jnp.tanh(remat.tag(x @ w['up'], 'ffn_up')) @ w['down'], None

    _, how = remat.policy(policy)
    layer = jax.checkpoint(layer, policy=how, prevent_cse=False)
    return jnp.sum(jax.lax.scan(layer, x_ND, kernels)[0].astype(jnp.float32) ** 2)

  def memory_of(policy):
    at = lambda shape, *spec: jax.ShapeDtypeStruct(
      shape, jnp.bfloat16, sharding=NamedSharding(mesh, P(*spec))
    )
    kernels = dict(up=at((depth, width, 4 * width)), down=at((depth, 4 * width, width)))
    with jax.set_mesh(mesh):
      traced = jax.jit(jax.grad(loss), static_argnums=2).trace(
        kernels, at((rows, width), 'data'), policy
      )
      return traced.lower(lowering_platforms=('tpu',)).compile().memory_analysis()

  kept = memory_of('names(layer_in, ffn_up)')
  away = memory_of('offload(layer_in, ffn_up)')
  moved = depth * rows * 5 * width * 2 // CHIPS
  assert (kept.host_temp_size_in_bytes, away.host_temp_size_in_bytes) == (0, moved)
  assert kept.temp_size_in_bytes - away.temp_size_in_bytes > moved / 2


def test_the_optimizer():
  """It leaves the arguments, and does not come back as a temporary beside the activations."""
  near, far = memory(), memory(('offload', 'optimizer'))
  moved = far.host_argument_size_in_bytes
  assert near.host_argument_size_in_bytes == 0
  assert near.argument_size_in_bytes - far.argument_size_in_bytes == pytest.approx(moved, rel=0.02)
  device = lambda m: m.argument_size_in_bytes + m.temp_size_in_bytes
  assert device(near) - device(far) > moved / 2
