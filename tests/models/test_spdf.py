"""Static sparsity: exact zeros through training and restoring, exact shares, sparsity 0 against
full matrices, dense fine-tuning from a sparse run.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import _linears
import _table
from lmjax import registry
from lmjax import restore
from lmjax.checkpoint import Checkpointer
from lmjax.parallel import facts as facts_lib

pytestmark = pytest.mark.slow  # minutes of compiling

SPEC, DENSE = 'spdf(sparsity=0.75)', 'spdf(sparsity=0.75, dense=True)'
DECAY = ('optim', 'clip() | adam() | decay(rate=10.0)')


def module(sparsity=0.5, ins=(('embed', 7),), outs=(('heads', 3), ('head_dim', 5))):
  return registry.make('linear', f'spdf(sparsity={sparsity})')(
    ins=ins, outs=outs, role='hidden', scheme=_table.scheme(), bias=False, parent=None
  )


def variables(**how):
  made = module(**how)
  x = jnp.zeros((1, 1, *(n for _, n in how.get('ins', (('embed', 7),)))))
  return made, facts_lib.unbox(made.init(jax.random.key(0), x))


def masks(state) -> dict:
  return {k: v['mask'] for k, v in _linears.matrices(state.vars['vars']).items()}


def kernels(tree) -> dict:
  return {k: v['kernel'] for k, v in _linears.matrices(tree).items()}


def test_the_product_is_that_of_the_kept_entries():
  made, found = variables()
  kernel, kept = _table.normal(7, 3, 5), np.asarray(found['vars']['mask'])
  x = _table.normal(2, 4, 7, seed=3)
  f = lambda w: made.apply(found | {'params': {'kernel': w}}, x)
  want = np.tensordot(np.float64(x), np.float64(kernel) * kept, 1)
  _table.close(f(kernel), want, 1e-5)
  slope = np.asarray(jax.grad(lambda w: jnp.sum(jnp.sin(f(w))))(kernel))
  assert np.array_equal(slope != 0, kept)


@pytest.mark.parametrize('sparsity', [0.0, 0.5, 0.75, 0.99])
def test_the_share_is_exact(sparsity):
  _, found = variables(sparsity=sparsity)
  kept, kernel = found['vars']['mask'], np.asarray(found['params']['kernel'])
  assert kept.dtype == bool and kept.shape == kernel.shape == (7, 3, 5)
  assert np.sum(~kept) == round(sparsity * 105)
  assert np.array_equal(kernel != 0, kept)


def test_every_place_is_as_likely_as_any_other():
  """Of 4000 masks that prune 5 of 20 places, each place is pruned in about a quarter."""
  from lmjax.models.linears import spdf

  draw = jax.vmap(lambda key: spdf.drawn(key, (4, 5), 5))
  found = np.sum(~np.asarray(draw(jax.random.split(jax.random.key(0), 4000))), axis=0)
  assert found.sum() == 20_000 and np.all(np.abs(found - 1000) < 5 * math.sqrt(750))


def test_pruned_entries_are_0_to_the_bit_at_any_step():
  """Under a decay that would show at once, in parameters and in moments."""
  first = _linears.start(SPEC, DECAY)
  losses, state = _linears.alone(SPEC, DECAY)
  assert losses[-1] < losses[0]
  jax.tree.map(_table.same, masks(state), masks(first))
  for name, kept in masks(state).items():
    a, b = _linears.SIDES[name]
    assert kept.shape[0] == 2 and not np.array_equal(kept[0], kept[1])
    assert [int(np.sum(~k)) for k in kept] == 2 * [round(0.75 * a * b)], name
    for tree in (first.params, state.params, state.opt['adam'].mu, state.opt['adam'].nu):
      x = np.asarray(kernels(tree)[name])
      assert not x[~kept].tobytes().strip(b'\0'), name
    assert np.all(np.asarray(kernels(state.opt['adam'].nu)[name])[kept] > 0), name


def test_only_matrices_of_the_layers_are_pruned():
  state = _linears.start(SPEC, DECAY)
  assert len(jax.tree.leaves(state.vars)) == len(_linears.SIDES)
  pruned = {
    jax.tree_util.keystr(p, simple=True, separator='/')
    for p, x in jax.tree_util.tree_leaves_with_path(state.params)
    if 0.7 < np.mean(x == 0) < 0.8
  }
  at = 'segment_0/0_block'
  want = {f'{at}/mixer/{k}/kernel' for k in ('q', 'k', 'v', 'out')}
  assert pruned == want | {f'{at}/ffn/{k}/kernel' for k in ('gate', 'up', 'down')}
  assert np.all(state.params['embed']['table'] != 0)


def test_sparsity_0_trains_as_full_matrices_do_to_the_bit():
  first = _linears.start('spdf(sparsity=0.0)'), _linears.start('dense()')
  jax.tree.map(_table.same, first[0].params, first[1].params)
  losses, state = _linears.alone('spdf(sparsity=0.0)')
  want, other = _linears.alone('dense()')
  assert losses == want
  jax.tree.map(_table.same, state.params, other.params)


@pytest.mark.parametrize('name', _linears.MESHES)
def test_a_mesh_changes_neither_training_nor_masks(name):
  state = _linears.on_a_mesh(name, SPEC, DECAY)
  jax.tree.map(_table.same, masks(state), masks(_linears.start(SPEC, DECAY)))
  shapes = _linears.pieces(masks(state))
  assert shapes == _linears.pieces(kernels(state.params))  # a mask lies like its kernel
  assert shapes['gate'] == (2, 8, 24)
  for name, kept in masks(state).items():
    assert not np.any(np.asarray(kernels(state.params)[name])[~np.asarray(kept)])


def test_a_shared_segment_has_one_mask():
  first = _linears.start(SPEC, ('model.stack', 'shared(block)*3'))
  for name, kept in masks(first).items():
    assert kept.shape[0] == 3
    for k in kept:
      np.testing.assert_array_equal(np.asarray(kernels(first.params)[name]) != 0, k)


@pytest.fixture(scope='module')
def sparse_run(tmp_path_factory):
  """A checkpoint of a sparse run, and the state in it."""
  folder = tmp_path_factory.mktemp('sparse') / 'checkpoints'
  _, state = _linears.alone(SPEC, DECAY)
  with Checkpointer(folder) as saver:
    saver.save(3, state, {})
    saver.wait()
  return folder, state


def test_a_restored_run_goes_on_alike(sparse_run):
  folder, state = sparse_run
  with Checkpointer(folder) as reader:
    back, _ = reader.restore(3, _linears.run(SPEC, DECAY).state_shapes)
  jax.tree.map(_table.same, (back.params, back.vars), (state.params, state.vars))


class Feed:
  """What a fresh run asks of its data."""

  skips = None


def fine_tuned(linear: str, folder, tmp_path):
  """The first state of a run from a checkpoint, as a run begins."""
  made = _linears.run(linear, DECAY, ('init_from', folder))
  return restore.Restorer(made, Checkpointer(tmp_path), Feed(), tmp_path).first()


def test_dense_fine_tuning_begins_sparse_with_a_fresh_optimizer_and_fills_the_zeros(
  sparse_run, tmp_path
):
  folder, trained = sparse_run
  state = fine_tuned(DENSE, folder, tmp_path)
  jax.tree.map(_table.same, state.params, trained.params)
  assert int(state.step) == 0 == int(state.opt['adam'].count)
  assert not any(np.any(x) for x in jax.tree.leaves(state.opt['adam'].mu))
  losses, after = _linears.train(DENSE, DECAY, state=jax.tree.map(np.asarray, state))
  for name, kept in masks(trained).items():
    x = np.asarray(kernels(after.params)[name])
    assert np.mean(x[~np.asarray(kept)] != 0) > 0.99, name
  sparse, _ = _linears.train(SPEC, DECAY, steps=1, state=trained)
  np.testing.assert_allclose(losses[0], sparse[0], rtol=1e-5)


def test_full_matrices_take_the_parameters_of_a_sparse_run(sparse_run):
  folder, trained = sparse_run
  found = Checkpointer(folder).restore_params(3, only=('params',))
  full = _linears.run('dense()', DECAY).shapes['params']
  out = restore.fitted(found, {'params': full}, 'here')
  jax.tree.map(_table.same, out['params'], trained.params)


def test_bad_sparsity_is_refused():
  said = r'config\.model\.linear: spdf\.sparsity=0\.9999 is not accepted: .*mixer/q has 1024'
  with pytest.raises(ValueError, match=said):
    _linears.run('spdf(sparsity=0.9999)')
  for bad in ('1.0', '-0.1'):
    said = f'sparsity={bad}: a share of at least 0 and below 1 is expected'
    with pytest.raises(ValueError, match=said):
      registry.make('linear', f'spdf(sparsity={bad})')
  with pytest.raises(ValueError, match="spdf needs the argument 'sparsity'"):
    registry.make('linear', 'spdf()')
