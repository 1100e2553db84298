"""What tests of matrix parameterizations share: a small model with grouped heads and gated
feed-forward, and its training with and without a mesh.
"""

import contextlib
import functools

import jax
from jax.sharding import NamedSharding
import numpy as np

import _meshes
import _table
from lmjax import build
from lmjax import config
from lmjax.parallel import mesh as mesh_lib
from lmjax.parallel import shard

WIDTH, HIDDEN, DEPTH = 32, 48, 2
SETTINGS = {
  'model.width': WIDTH,
  'model.depth': DEPTH,
  'model.unroll': 1,
  'model.mixer': 'gqa(head_dim=8, kv_heads=2)',
  'model.ffn': f'swiglu(hidden={HIDDEN}, bias=True)',
  'data.length': 16,
  'batch_tokens': 128,
  'schedule': 'constant()',
  'steps': 6,
  'peak_lr': 0.01,
}
SIDES = dict(
  q=(WIDTH, WIDTH),
  k=(WIDTH, 16),
  v=(WIDTH, 16),
  out=(WIDTH, WIDTH),
  gate=(WIDTH, HIDDEN),
  up=(WIDTH, HIDDEN),
  down=(HIDDEN, WIDTH),
)
MESHES = {
  'auto': _meshes.settings(data=4, tensor=2),
  'explicit': _meshes.settings('explicit', data=4, tensor=2),
}


@functools.cache
def run(linear: str, *changes) -> build.Run:
  """The model with this parameterization; changes are (key, value) pairs."""
  settings = SETTINGS | {'model.linear': linear} | dict(changes)
  return build.build(
    config.resolve(config.load('quickstart', [(k, str(v)) for k, v in settings.items()]))
  )


@functools.cache
def start(linear: str, *changes):
  """The first state, on the host."""
  return jax.tree.map(np.asarray, run(linear, *changes).init(jax.random.key(0)))


def batch(made: build.Run, seed=0):
  rows, steps = made.rows, made.length + made.lookahead
  tokens = np.random.default_rng(seed).integers(0, 256, (rows, steps)).astype(np.int32)
  segments = np.ones_like(tokens)
  segments[::2, 9:] = 2
  return dict(tokens=tokens, segments=segments, positions=_table.positions_of(segments))


def train(linear: str, *changes, steps=3, mesh=None, state=None):
  """(losses, last state) of so many steps on one batch, from `state` or the first one."""
  made = run(linear, *changes)
  state, rows = start(linear, *changes) if state is None else state, batch(made)
  with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
    out = None
    if mesh is not None:
      state = jax.device_put(state, shardings := made.shardings())
      rows = jax.device_put(rows, NamedSharding(mesh, shard.spec(('batch', None))))
      out = shardings, None
    step, losses = jax.jit(made.step, out_shardings=out), []
    for _ in range(steps):
      state, metrics = step(state, rows, jax.random.key(1))
      losses.append(float(metrics['loss'][0] / metrics['loss'][1]))
  return losses, state


@functools.cache
def alone(linear: str, *changes):
  return train(linear, *changes)


def on_a_mesh(name: str, linear: str, *changes, rtol=2e-5):
  """The last state of training on a mesh, which must train as one device does."""
  want, _ = alone(linear, *changes)  # built and started outside the mesh, as a run is
  got, state = train(linear, *changes, mesh=mesh_lib.make(MESHES[name]))
  np.testing.assert_allclose(got, want, rtol=rtol)
  assert got[-1] < got[0]
  return state


def layer(tree):
  """The one block of the stack: {'mixer': ..., 'ffn': ...}, stacked over layers."""
  return tree['segment_0']['0_block']


def matrices(tree) -> dict:
  """{name: leaves of its module} of the matrices of the block."""
  block = layer(tree)
  return {k: block['mixer'][k] for k in ('q', 'k', 'v', 'out')} | {
    k: block['ffn'][k] for k in ('gate', 'up', 'down')
  }


def pieces(tree):
  """Shapes of what one device holds."""
  return jax.tree.map(lambda x: x.addressable_shards[0].data.shape, tree)
