import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import build
from lmjax import config
from lmjax.planning import chips
from lmjax.planning import hlo
from lmjax.planning import layout
from lmjax.planning import planned
from lmjax.planning import roofline
from lmjax.planning import topologies
from lmjax.planning import trace
from lmjax.planning import walk as walk_lib
from lmjax.planning import work

SMALL = [
  ('model.width', '64'),
  ('model.depth', '4'),
  ('model.unroll', '1'),
  ('data.length', '32'),
  ('batch_tokens', '512'),
  ('model.mixer.head_dim', '16'),
  ('sample.tokens', '0'),
]


def run(*more, recipe='quickstart'):
  return build.build(config.resolve(config.load(recipe, [*SMALL, *more])))


def estimate(made, topology='v5e-8'):
  where = topologies.parse(topology)
  mesh = planned.mesh_of(made, where)
  return trace.estimate(made, None if mesh is None else mesh.abstract_mesh, where.chip)


def of(e, kind, *axes):
  return [c for c in e.collectives if c.kind == kind and c.axes == axes]


@pytest.mark.parametrize('remat', ['none', 'full'])
def test_flops_are_those_of_the_compiled_program(remat):
  made = run(('model.remat', remat))
  key = jax.eval_shape(lambda: jax.random.key(0))
  step = jax.jit(made.step).lower(made.state_shapes, made.batch_shapes(), key).compile()
  assert estimate(made, 'v5e-1').flops == pytest.approx(
    work.flops(hlo.parse(step.as_text())), rel=0.02
  )


def test_every_mesh_does_the_same_work():
  alone = estimate(run(), 'v5e-1').flops
  for axes in ('data', 'tensor'), ('data',), ('expert',):
    sizes = {('data', 'tensor'): (4, 2), ('data',): (8,), ('expert',): (8,)}[axes]
    made = run(*((f'mesh.{a}', str(n)) for a, n in zip(axes, sizes)))
    assert 8 * estimate(made).flops == pytest.approx(alone, rel=0.01), axes


@pytest.mark.parametrize('remat', ['none', 'full'])
def test_parameters_are_gathered_twice_and_gradients_scattered_once(remat):
  """ZeRO-3: what is cut is gathered forward and again backward, where what is computed again uses
  the same; the gradient is reduce-scattered once.
  """
  made = run(('mesh.data', '8'), ('model.remat', remat))
  e = estimate(made)
  mesh = planned.mesh_of(made, topologies.parse('v5e-8'))
  placed = jax.tree.leaves(made.placements(mesh).params, is_leaf=build.is_placement)
  shapes = jax.tree.leaves(made.state_shapes.params)
  cut = sum(4 * math.prod(s.shape) for p, s in zip(placed, shapes) if p.piece != s.shape)
  table = 4 * math.prod(made.shapes['params']['embed']['table'].shape)  # tied: used in two places
  total = lambda kind: sum(c.payload * c.count for c in of(e, kind, 'data'))
  assert total('reduce-scatter') == pytest.approx(cut + table, rel=0.01)
  assert total('all-gather') == pytest.approx(2 * (cut - table) + table, rel=0.1)
  assert total('all-reduce') < 0.01 * cut


def test_tensor_parallel_layers_reduce_twice_each_way():
  """Megatron (arXiv:1909.08053): two all-reduces of the activations a layer forward, two back."""
  made = run(('mesh.data', '2'), ('mesh.tensor', '4'))
  activations = 4 * 8 * 32 * 64  # rows of a data shard, in float32
  found = [c for c in of(estimate(made), 'all-reduce', 'tensor') if c.payload == activations]
  assert sum(c.count for c in found) in (4 * 4 + 1, 4 * 4 + 2)  # and those at the unembedding


def test_activations_kept_follow_remat_and_micro_batches():
  full, none, halves = (
    estimate(run(('mesh.data', '8'), *more))
    for more in (
      [('model.remat', 'full')],
      [],
      [('model.remat', 'full'), ('micro_batches', '2')],
    )
  )
  stream = 4 * 2 * 32 * 64 * 4  # layers, rows of a chip, length, width, float32
  assert stream <= full.kept <= 1.2 * stream
  assert none.kept > 5 * full.kept
  assert halves.kept == pytest.approx(full.kept / 2, rel=0.1)
  assert halves.flops == pytest.approx(full.flops, rel=0.01)


@pytest.mark.parametrize('sizes', [dict(sequence=4, data=2), dict(stage=2, data=4)])
def test_what_is_written_for_one_device_is_counted_too(sizes):
  e = estimate(run(*((f'mesh.{a}', str(n)) for a, n in sizes.items())))
  assert any(c.kind == 'collective-permute' for c in e.collectives)
  assert e.live < 8 * estimate(run(('mesh.data', '8'))).live


@pytest.mark.parametrize('recipe', ['bert_tiny', 'gpt2:tiny', 'llama:tiny'])
def test_recipes_can_be_estimated(recipe):
  e = estimate(run(('mesh.data', '8'), recipe=recipe))
  assert e.flops > 0 and e.bytes > e.live > 0
  # A sum of larger ones is at least the larger of the sums, at most both.
  chip = chips.CHIPS['v5e']
  ends = roofline.compute_seconds(e.flops, chip), roofline.memory_seconds(e.bytes, chip)
  assert 0.999 * max(ends) <= e.work <= sum(ends)


def test_layouts_survive_reshapes():
  x = ('data',), (), ('tensor',)
  assert layout.reshaped((8, 4, 6), (32, 6), x) == (('data',), ('tensor',))
  assert layout.reshaped((8, 4, 6), (8, 4, 2, 3), x) == (('data',), (), ('tensor',), ())
  assert layout.reshaped((8, 4, 6), (1, 8, 4, 6), x) == ((), ('data',), (), ('tensor',))


def test_fused_operations_cost_nothing_but_their_reading():
  walk = walk_lib.Walk({'data': 2}, {}, chips.CHIPS['v5e'])
  jaxpr = jax.make_jaxpr(lambda x: jnp.sum(jnp.sin(x) * 2 + 1))(np.zeros((4, 8), np.float32))
  out, (live, _) = walk.run(jaxpr.jaxpr, [walk.value(jaxpr.in_avals[0], (('data',), ()))], 1)
  assert walk.flops == 0 and walk.bytes == 4 * 4 * 8 / 2 + 4 and live == 4
  assert [(c.kind, c.axes) for c in walk.collectives] == [('all-reduce', ('data',))]


def live_of(f, *shapes):
  jaxpr = jax.make_jaxpr(f)(*map(jnp.ones, shapes))
  walk = walk_lib.Walk({}, {}, chips.CHIPS['v5e'])
  given = [walk.value(a, ((),) * len(a.shape)) for a in jaxpr.in_avals]
  return walk, walk.run(jaxpr.jaxpr, given, 1)[1][0]


def test_what_a_call_gives_is_held_once():
  f = lambda x: x @ x
  assert live_of(jax.jit(f), (8, 8))[1] == live_of(f, (8, 8))[1] == 4 * 64
  # A loop's results lie there while it turns, beside what one turn needs.
  loop = lambda x: jax.lax.scan(lambda c, _: (c, (c @ c) @ c), x, length=3)[1]
  assert live_of(loop, (8, 8))[1] >= 4 * 64 * (3 + 2)


def test_an_update_in_its_place_moves_the_update():
  def f(x, y):
    z = x @ x
    return jax.lax.dynamic_update_slice(z, y, (2, 0))

  walk, live = live_of(f, (8, 8), (1, 8))
  assert live == 4 * 64 and walk.bytes == 4 * (2 * 64 + 2 * 8)
