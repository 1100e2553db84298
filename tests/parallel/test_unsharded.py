"""What a mesh cuts is nowhere whole in the compiled training step: no parameter, gradient or moment
of several layers, no table or logits where the vocabulary is cut, no row where `sequence` cuts it.
"""

import math
import re

import jax
from jax.sharding import NamedSharding
import pytest

import _meshes
from lmjax import build
from lmjax import config
from lmjax.parallel import mesh as mesh_lib
from lmjax.parallel import shard

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason='eight devices are needed')
# Sizes that no other axis has, whole or cut, so that a shape says what it is.
WIDTH, DEPTH, HIDDEN, STEPS, VOCAB = 48, 4, 112, 32, 264
SETTINGS = {
  'model.width': str(WIDTH),
  'model.depth': str(DEPTH),
  'data.length': str(STEPS),
  'batch_tokens': str(16 * STEPS),
  'model.mixer': 'gqa(head_dim=12, kv_heads=2)',
  'model.ffn': f'swiglu(hidden={HIDDEN})',
  'model.embed': 'untied(multiple_of=8)',
}


def compiled(more=(), **axes):
  """(run, mesh, all shapes in the program of a training step)."""
  changes = SETTINGS | dict(more)
  run = build.build(config.resolve(config.load('quickstart', list(changes.items()))))
  mesh = mesh_lib.make(_meshes.settings(**axes))
  with jax.set_mesh(mesh):
    places = run.shardings()
    put = lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s)
    rows = NamedSharding(mesh, shard.spec(('batch', None)))
    batch = jax.tree.map(lambda a: put(a, rows), run.batch_shapes())
    state = jax.tree.map(put, run.state_shapes, places)
    step = jax.jit(run.step, donate_argnums=0, out_shardings=(places, None))
    text = step.lower(state, batch, jax.random.key(0)).compile().as_text()
  found = re.findall(r'\b(?:f32|bf16|s32|u32)\[([\d,]+)\]', text)
  return run, mesh, {tuple(map(int, d.split(','))) for d in found}


def whole(run, mesh):
  """{path: shape} of parameters that are cut, less what ZeRO-3 gathers for use at once."""
  placed = jax.tree.leaves(run.placements(mesh).params, is_leaf=build.is_placement)
  for (path, leaf), place in zip(
    jax.tree_util.tree_leaves_with_path(run.shapes['params']), placed, strict=True
  ):
    if place.piece != leaf.shape and len(leaf.shape) > 2:
      yield jax.tree_util.keystr(path, simple=True, separator='/'), leaf.shape


@pytest.mark.parametrize(
  'axes, more',
  [
    pytest.param(dict(data=8), {}, marks=pytest.mark.slow),
    pytest.param(dict(data=4, tensor=2), {}, marks=pytest.mark.slow),
    (dict(data=2, sequence=2, tensor=2), {}),
    pytest.param(dict(data=4, sequence=2), {'mesh.context': 'all_gather'}, marks=pytest.mark.slow),
    (dict(stage=2, data=2, tensor=2), {'mesh.stage_rounds': '2'}),
  ],
  ids=str,
)
def test_nothing_is_whole_that_is_cut(axes, more):
  run, mesh, shapes = compiled(more, **axes)
  cut = dict(whole(run, mesh))
  assert len(cut) >= 7, cut
  for path, shape in cut.items():
    assert shape not in shapes, f'{path} is whole: {shape}'
    # ... nor is it with its axes in another order
    again = [s for s in shapes if sorted(s) == sorted(shape)]
    assert not again, f'{path} is whole: {again}'
  apart = math.prod(axes.get(a, 1) for a in shard.RULES['vocab'])
  tall = [s for s in shapes if VOCAB in s]
  if apart > 1:
    assert any(VOCAB // apart in s for s in shapes)
    assert not tall, f'the vocabulary is whole: {tall}'
  else:  # one row of logits a device at most: the rows that it owns
    assert all(math.prod(s) <= VOCAB * max(WIDTH, 16 // 8 * STEPS) for s in tall), tall
  if 'sequence' in axes:
    long = [s for s in shapes if STEPS in s and (WIDTH in s or HIDDEN in s or HIDDEN // 2 in s)]
    assert not long, f'rows are whole: {long}'


@pytest.mark.slow
def test_a_step_without_placements_would_be_seen():
  """The check notices: without the mesh's rules everything is whole."""
  run, mesh, shapes = compiled(data=4, tensor=2)
  assert not [s for p, s in whole(run, mesh) if s in shapes]
  rules = dict(shard.RULES)
  try:
    shard.RULES.update({k: () for k in rules if k != 'batch'})
    _, _, shapes = compiled(data=4, tensor=2)
  finally:
    shard.RULES.update(rules)
  assert [s for p, s in whole(run, mesh) if s in shapes]
