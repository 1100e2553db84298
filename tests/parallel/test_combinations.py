"""Every combination of mesh axes that is said to be tested: loss and gradient of one device.

Tolerance: 2e-5 of the loss, and of the largest entry of each gradient; sums over devices are taken
in another order.
"""

import functools
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

import _meshes
import _table
from lmjax import build
from lmjax import config
from lmjax.parallel import mesh as mesh_lib

needed = pytest.mark.skipif(jax.device_count() < 8, reason='eight devices are needed')
ROWS, STEPS, TOLERANCE = 16, 32, 2e-5
SMALL = {
  'model.width': '32',
  'model.depth': '8',
  'data.length': str(STEPS),
  'batch_tokens': str(ROWS * STEPS),
  'model.mixer': 'gqa(head_dim=8, kv_heads=2)',
  'model.ffn': 'swiglu(hidden=48)',
  'model.embed': 'untied(multiple_of=8)',
}
EXPERTS = {'model.ffn': 'base_layers(experts=2, groups=8)'}
DEVICES = {1: 8, 2: 4, 3: 2, 4: 2}  # of an axis, by the number of axes
ALONE = {'expert': 2, 'tensor': 2, 'stage': 4}


def sizes(axes) -> dict[str, int]:
  """Eight devices, or two along each axis; as many as there are experts and heads of keys."""
  each = {a: ALONE.get(a, DEVICES[1]) if len(axes) == 1 else 2 for a in axes}
  if len(axes) == 2 and axes[0] != 'expert':
    each['data' if 'data' in axes else axes[0]] = 4
  return each


@functools.cache
def run(*more) -> build.Run:
  changes = {**SMALL, **dict(more)}
  return build.build(config.resolve(config.load('quickstart', list(changes.items()))))


def batch():
  rng, segments = np.random.default_rng(0), np.ones((ROWS, STEPS + 1), np.int32)
  segments[::2, 9:] = 2
  segments[5, 3:] = 0
  segments[7, 30:] = 0
  tokens = rng.integers(0, 256, segments.shape).astype(np.int32)
  return dict(tokens=tokens, segments=segments, positions=_table.positions_of(segments))


def more_of(axes) -> tuple:
  changes = EXPERTS if 'expert' in axes else {}
  return tuple((changes | ({'mesh.stage_rounds': '2'} if 'stage' in axes else {})).items())


@functools.cache
def alone(more):
  """(first parameters, (loss, variables), gradient) on one device."""
  params = jax.tree.map(np.asarray, run(*more).init(jax.random.key(0)).params)
  return params, _meshes.slope(run(*more), params, {}, batch())


def agrees(axes, **how):
  more = more_of(axes)
  params, want = alone(more)
  of = run(*more, *how.items())
  got = _meshes.slope(of, params, {}, batch(), _meshes.settings(**sizes(axes)))
  np.testing.assert_allclose(got[0][0], want[0][0], rtol=TOLERANCE)
  for (path, a), b in zip(
    jax.tree_util.tree_leaves_with_path(got[1]), jax.tree.leaves(want[1]), strict=True
  ):
    far = np.abs(a - b).max() / max(np.abs(b).max(), 1e-6)  # no gradient flows to some
    assert far < TOLERANCE, (jax.tree_util.keystr(path), far)


BY_DEFAULT = (('data', 'sequence', 'tensor'), ('stage', 'data', 'tensor'))
SMALLER = [
  pytest.param(c, marks=() if c in BY_DEFAULT else pytest.mark.slow, id=' x '.join(c))
  for c in mesh_lib.COMBINATIONS
  if len(c) < 4
]


@needed
@pytest.mark.parametrize('axes', SMALLER)
def test_up_to_three_axes(axes):
  agrees(axes)


@pytest.mark.slow
@needed
def test_keys_gathered_instead_of_a_ring():
  agrees(('data', 'sequence', 'tensor'), **{'mesh.context': 'all_gather'})


@pytest.mark.slow
@needed
@pytest.mark.parametrize('remat', ['none', 'full'])
def test_stages_that_compute_their_layers_again(remat):
  agrees(('stage', 'data', 'tensor'), **{'mesh.stage_remat': 'True', 'model.remat': remat})


@pytest.mark.slow
@needed
def test_stages_that_gather_each_layer_each_time():
  agrees(('stage', 'data', 'tensor'), **{'mesh.stage_gather': 'each'})


@pytest.mark.slow
@needed
@pytest.mark.parametrize('gather', ['once', 'each'])
def test_a_pipeline_in_bfloat16(gather):
  """XLA:CPU ended the process at sums of bfloat16 over `stage` beside axes of the partitioner."""
  params, want = alone(())
  of = run(*{'model.dtype': 'bfloat16', 'mesh.stage_gather': gather}.items())
  got = _meshes.slope(of, params, {}, batch(), _meshes.settings(stage=2, data=2, tensor=2))
  np.testing.assert_allclose(got[0][0], want[0][0], rtol=5e-3)
  for a, b in zip(jax.tree.leaves(got[1]), jax.tree.leaves(want[1]), strict=True):
    assert np.abs(a - b).max() < 0.05 * max(np.abs(b).max(), 1e-2)


@pytest.mark.slow
def test_four_axes():
  """Sixteen devices, in a process of their own."""
  flags = '--xla_force_host_platform_device_count=16 --xla_backend_optimization_level=0'
  here = pathlib.Path(__file__).resolve()
  path = os.pathsep.join(map(str, (here.parents[2], here.parents[1] / 'contracts', here.parent)))
  env = os.environ | dict(JAX_PLATFORMS='cpu', XLA_FLAGS=flags, PYTHONPATH=path)
  code = (
    'import json, test_combinations as t\n'
    'found = [c for c in t.mesh_lib.COMBINATIONS if len(c) == 4]\n'
    'for c in found: t.agrees(c)\n'
    'print(json.dumps(found))'
  )
  ran = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True)
  assert ran.returncode == 0, ran.stderr[-3000:]
  assert len(json.loads(ran.stdout.splitlines()[-1])) >= 3


def test_the_list_names_every_axis_alone_and_at_least_eight_together():
  assert all((a,) in mesh_lib.COMBINATIONS for a in mesh_lib.AXES)
  assert sum(len(c) > 1 for c in mesh_lib.COMBINATIONS) >= 8
  assert all(c == tuple(a for a in mesh_lib.AXES if a in c) for c in mesh_lib.COMBINATIONS)
