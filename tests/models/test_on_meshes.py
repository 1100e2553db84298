"""Parts of models that do more than attention and matrices, on meshes: the loss and the gradient of
one device.
"""

import functools

import jax
import numpy as np
import pytest

import _meshes
import _table
from lmjax import build
from lmjax import config

pytestmark = pytest.mark.skipif(
  jax.device_count() < 8, reason='eight devices are needed; on the CPU conftest.py simulates them'
)
SMALL = {
  'model.width': '32',
  'model.depth': '2',
  'data.length': '16',
  'batch_tokens': '128',
  'model.mixer': 'gqa(head_dim=8)',
  'model.embed': 'untied(multiple_of=8)',
}
MODELS = {
  'deltanet': {'model.mixer': 'deltanet(head_dim=8, gate=True)', 'model.position': 'none()'},
  'mix_ln': {'model.residual': 'mix_ln(alpha=0.5)'},
  'layernorm_scaling': {'model.residual': 'layernorm_scaling()'},
  'pre_rmsnorm': {'model.residual': 'pre_rmsnorm()'},
  'encoder parts': {
    'model.architecture': 'head_transform()',
    'model.position': 'learned_types(offset=2)',
    'model.embed': 'tied(multiple_of=8, bias=True)',
    'model.ffn': 'geglu(hidden=64, bias=True)',
    'model.residual': 'pre_ffn()',
  },
  'relative_bias': {
    'model.mixer': 'relative_bias(inner=gqa(head_dim=8), buckets=6, distance=5)',
    'model.init': 't5()',
    'model.ffn': 'relu()',
  },
  'pre_crmsnorm': {'model.norm': 'pre_crmsnorm()', 'model.final_norm': 'pre_crmsnorm()'},
}


@functools.cache
def run(name) -> build.Run:
  return build.build(
    config.resolve(config.load('quickstart', list((SMALL | MODELS[name]).items())))
  )


def batch():
  rng, segments = np.random.default_rng(0), np.ones((8, 17), np.int32)
  segments[::2, 9:] = 2
  segments[5, 3:] = 0
  tokens = rng.integers(0, 256, segments.shape).astype(np.int32)
  return dict(tokens=tokens, segments=segments, positions=_table.positions_of(segments))


@functools.cache
def start(name):
  state = run(name).init(jax.random.key(0))
  return jax.tree.map(np.asarray, (state.params, state.vars))


@functools.cache
def alone(name):
  return _meshes.slope(run(name), *start(name), batch())


@_meshes.each
@pytest.mark.parametrize(
  'name',
  [pytest.param(n, marks=() if n == 'mix_ln' else pytest.mark.slow) for n in MODELS],
)
def test_a_mesh_changes_neither_loss_nor_gradient(name, axes):
  _table.trees_close(_meshes.slope(run(name), *start(name), batch(), axes), alone(name), 2e-5)
