"""Sparse plus low rank: the product and its gradient against the full matrix, what is kept between
the passes, the support in the state, refusals by name.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import _linears
import _table
from lmjax import registry
from lmjax.checkpoint import Checkpointer
from lmjax.parallel import facts as facts_lib

pytestmark = pytest.mark.slow  # minutes of compiling

SPEC = 'sltrain(rank=4, delta=0.1)'
INS, OUTS = (('heads', 4), ('head_dim', 6)), (('embed', 10),)


def module(rank=3, delta=0.2, alpha=7.0, bias=False, ins=INS, outs=OUTS):
  spec = f'sltrain(rank={rank}, delta={delta}, alpha={alpha})'
  return registry.make('linear', spec)(
    ins=ins, outs=outs, role='hidden', scheme=_table.scheme(), bias=bias, parent=None
  )


def variables(**how):
  made = module(**how)
  x = jnp.zeros((1, 1, *(n for _, n in how.get('ins', INS))))
  return made, facts_lib.unbox(made.init(jax.random.key(0), x))


def stirred(**how):
  """A module whose factors and values are all away from where they start."""
  made, found = variables(**how)
  return made, found | {'params': _table.stir(found['params'])}


def full(params, support, rank=3, alpha=7.0):
  """W, entry by entry."""
  w = alpha / rank * np.tensordot(params['down'], params['up'], 1)
  w.reshape(-1)[support] += np.asarray(params['values'])
  return w


def test_the_product_is_that_of_the_full_matrix():
  made, found = stirred()
  x = _table.normal(2, 3, 4, 6)
  w = full(_table.numpy64(found['params']), found['vars']['support'])
  _table.close(made.apply(found, x), np.tensordot(np.float64(x), w, 2), 1e-5)


def test_gradients_are_those_of_the_full_matrix():
  made, found = stirred()
  x, dy = _table.normal(2, 3, 4, 6), _table.normal(2, 3, 10, seed=9)
  _, pull = jax.vjp(lambda p, x: made.apply(found | {'params': p}, x), found['params'], x)
  got, dx = pull(dy)
  p, support = _table.numpy64(found['params']), found['vars']['support']
  g = np.tensordot(np.float64(x), np.float64(dy), ((0, 1), (0, 1)))  # of the full matrix
  want = dict(
    down=7 / 3 * np.tensordot(g, p['up'], ((2,), (1,))),
    up=7 / 3 * np.tensordot(p['down'], g, ((0, 1), (0, 1))),
    values=g.reshape(-1)[support],
  )
  _table.trees_close(got, want, 1e-5)
  _table.close(dx, np.tensordot(np.float64(dy), full(p, support), ((2,), (2,))), 1e-5)


def test_the_first_map_is_the_sparse_matrix_alone():
  made, found = variables()
  params, support = found['params'], found['vars']['support']
  assert not np.any(params['up']) and np.all(params['values'] != 0)
  sparse = np.zeros(240)
  sparse[support] = params['values']
  x = _table.normal(2, 3, 4, 6)
  want = np.tensordot(np.float64(x), sparse.reshape(4, 6, 10), 2)
  _table.close(made.apply(found, x), want, 1e-5)


def test_first_values_are_uniform_by_the_inputs():
  _, found = variables(rank=20, delta=0.5, ins=(('embed', 400),), outs=(('mlp', 100),))
  for name in ('down', 'values'):
    x = np.asarray(found['params'][name])
    assert 0.99 / 20 < np.abs(x).max() <= 1 / 20, name
    assert abs(x.std() * math.sqrt(3 * 400) - 1) < 0.03, name


@pytest.mark.parametrize('delta, count', [(0.2, 48), (0.0299, 7), (1.0, 240)])
def test_the_support_is_so_many_different_places(delta, count):
  _, found = variables(delta=delta)
  support = np.asarray(found['vars']['support'])
  assert support.dtype == np.int32 and support.shape == (count,)
  assert np.all(np.diff(support) > 0) and support[0] >= 0 and support[-1] < 240
  assert found['params']['values'].shape == (count,)


def test_every_place_is_as_likely_as_any_other():
  """Of 4000 supports of 5 places out of 20, each place is in about a quarter."""
  from lmjax.models.linears import sltrain

  draw = jax.vmap(lambda key: sltrain.drawn(key, 20, 5))
  found = np.bincount(np.asarray(draw(jax.random.split(jax.random.key(0), 4000))).ravel())
  assert len(found) == 20 and np.all(np.abs(found - 1000) < 5 * math.sqrt(750))


def test_nothing_of_the_size_of_the_matrix_is_kept_for_the_backward_pass():
  made, found = stirred(delta=0.1)
  x = _table.normal(1, 2, 4, 6)
  f = lambda p, x: made.apply(found | {'params': p}, x)
  kept = jax.tree.leaves(jax.vjp(f, found['params'], x)[1])
  assert kept and all(np.size(a) < 240 for a in kept), [np.shape(a) for a in kept]


def arrays(jaxpr):
  """Shapes of all arrays in a program."""
  for eqn in jaxpr.eqns:
    yield from (v.aval.shape for v in (*eqn.invars, *eqn.outvars) if hasattr(v.aval, 'shape'))
  for inner in _inner(jaxpr):
    yield from arrays(inner)


def _inner(jaxpr):
  for eqn in jaxpr.eqns:
    for value in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, 'eqns')):
      value = getattr(value, 'jaxpr', value)
      if hasattr(value, 'eqns'):
        yield value


@pytest.mark.parametrize('remat', ['none', 'dots', 'full'])
def test_a_scanned_model_stacks_no_full_matrices(remat):
  made = _linears.run(SPEC, ('model.remat', remat))
  args = made.state_shapes, made.batch_shapes(), jax.random.key(0)
  shapes = set(arrays(jax.make_jaxpr(made.step)(*args).jaxpr))
  assert (32, 48) in shapes and (2, 32, 4) in shapes  # W itself, and the factors of both layers
  assert (2, 32, 48) not in shapes and (2, 48, 32) not in shapes


def test_recomputing_and_unrolling_change_nothing():
  want, state = _linears.alone(SPEC)
  changes = ('model.remat', 'full'), ('model.unroll', 2)
  got, other = _linears.train(SPEC, *changes, state=_linears.start(SPEC))
  np.testing.assert_allclose(got, want, rtol=1e-5)
  _table.trees_close(other.params, state.params, 1e-4)


def test_supports_differ_by_matrix_and_layer_and_rest():
  first = _linears.start(SPEC)
  found = _linears.matrices(first.vars['vars'])
  assert found.keys() == _linears.SIDES.keys()
  for name, sides in _linears.SIDES.items():
    support = found[name]['support']
    assert support.shape == (2, math.floor(0.1 * math.prod(sides))), name
    assert not np.array_equal(support[0], support[1]), name
  assert not np.array_equal(found['q']['support'], found['out']['support'])
  assert not np.array_equal(found['gate']['support'], found['up']['support'])
  _, state = _linears.alone(SPEC)
  jax.tree.map(_table.same, state.vars, first.vars)
  text = jax.tree_util.keystr
  assert not any('support' in text(p) for p, _ in jax.tree_util.tree_leaves_with_path(state.opt))


def test_a_shared_segment_has_one_support():
  stack = ('model.stack', 'shared(block)*3')
  first = _linears.start(SPEC, stack)
  for leaf in jax.tree.leaves(first.vars):
    assert leaf.shape[0] == 3
    _table.same(leaf[0], leaf[1])
    _table.same(leaf[0], leaf[2])


def test_a_checkpoint_has_the_support(tmp_path):
  _, state = _linears.alone(SPEC)
  made = _linears.run(SPEC)
  with Checkpointer(tmp_path) as saver:
    saver.save(3, state, {})
    saver.wait()
    back, _ = saver.restore(3, made.state_shapes)
  jax.tree.map(_table.same, back.vars, state.vars)
  assert len(jax.tree.leaves(back.vars)) == 7


def test_the_parameters_are_as_many_as_the_formula_says():
  params = _linears.matrices(_linears.run(SPEC).shapes['params'])
  for name, (a, b) in _linears.SIDES.items():
    count = sum(math.prod(s.shape) for k, s in params[name].items() if k != 'bias')
    assert count == 2 * (4 * (a + b) + math.floor(0.1 * a * b)), name


@pytest.mark.parametrize('name', _linears.MESHES)
def test_a_mesh_changes_neither_training_nor_support(name):
  state = _linears.on_a_mesh(name, SPEC)
  for tree in (state.params, state.opt['adam'].mu):
    mixer = _linears.pieces(_linears.layer(tree)['mixer'])
    assert mixer['q'] == dict(down=(2, 8, 4), up=(2, 4, 2, 8), values=(2, 102))
    assert mixer['out'] == dict(down=(2, 2, 8, 4), up=(2, 4, 8), values=(2, 102))
  jax.tree.map(_table.same, state.vars, _linears.start(SPEC).vars)


def test_bad_sizes_are_refused_by_the_name_of_the_matrix():
  said = r'config\.model\.linear: sltrain\.{} is not accepted: .* expected, and .*{} is {}'
  with pytest.raises(ValueError, match=said.format('rank=16', 'mixer/k', '32 x 16')):
    _linears.run('sltrain(rank=16)')
  with pytest.raises(ValueError, match=said.format('delta=0.001', 'mixer/k', '32 x 16')):
    _linears.run('sltrain(rank=4, delta=0.001)')
  with pytest.raises(ValueError, match=r'counts entries in 32 bits, and this one has 4294967296'):
    made = module(ins=(('embed', 65536),), outs=(('mlp', 65536),))
    jax.eval_shape(lambda: made.init(jax.random.key(0), jnp.zeros((1, 1, 65536))))


@pytest.mark.parametrize(
  'args, said',
  [
    ('rank=0', 'rank=0: a positive number is expected'),
    ('rank=2, delta=0.0', 'delta=0.0: a share above 0 and at most 1 is expected'),
    ('rank=2, delta=1.5', 'delta=1.5: a share above 0 and at most 1 is expected'),
    ('rank=2, alpha=0.0', 'alpha=0.0: a positive number is expected'),
    ('', "sltrain needs the argument 'rank'"),
  ],
)
def test_bad_arguments_are_refused(args, said):
  with pytest.raises(ValueError, match=said):
    registry.make('linear', f'sltrain({args})')
