"""Full matrices from masked and from structured ones, and factors without their guide: the function
is the old run's.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import _table
from lmjax import kinds
from lmjax import registry
from lmjax.nn import embedding
from lmjax.parallel import facts as facts_lib

SMALL = dict(
  width=16,
  stack='block*2 + shared(block)*2',
  blocks__block__ffn='gelu(hidden=24, bias=True)',
)
RANK = 'structured_ffn(rank=4{})'
BLOCKS = 'structured_ffn(kind="block_shuffle", blocks=2{})'
GUIDED = ', guided=0.5, steps=8, micro_batches=2'


def stage(linear: str, seed=0, passes=0, **how) -> kinds.Stage:
  """A run whose parameters are anything, as surgery sees it; masks keep half of the entries."""
  net = _table.model(linear=linear, **{**SMALL, **how})
  boxed = _table.abstract(net, jnp.zeros((1, net.model.length), jnp.int32), _table.ctx(1))
  variables, facts = facts_lib.unbox(boxed), facts_lib.facts(boxed)
  draw = np.random.default_rng(seed)

  def one(path, leaf):
    if path[-1].key == 'passes':
      return np.full(leaf.shape, passes, np.int32)
    one_round = draw.random(leaf.shape[1:]) < 0.5  # all rounds of a shared segment have one mask
    shared = path[0].key == 'segment_1'
    return np.broadcast_to(one_round, leaf.shape) if shared else draw.random(leaf.shape) < 0.5

  found = {k: jax.tree_util.tree_map_with_path(one, v) for k, v in variables.items()}
  found['params'] = _table.values(boxed['params'], seed)
  return kinds.Stage({}, net.model, lambda p, v: (p, v), found, facts)


@functools.cache
def forward(net):
  tokens = np.random.default_rng(5).integers(0, net.model.vocab, (2, net.model.length))
  ctx = _table.ctx()
  return jax.jit(lambda found: embedding.logits(net.apply(found, jnp.asarray(tokens), ctx)))


def logits(linear: str, variables, **how):
  return forward(_table.model(linear=linear, **{**SMALL, **how}))(variables)


def operate(name: str, old, new):
  return registry.make('surgery', f'{name}(run="there")')()(old, new, None)


def kernels(variables) -> list[np.ndarray]:
  found = jax.tree_util.tree_leaves_with_path(variables['params'])
  return [np.asarray(x) for path, x in found if path[-1].key == 'kernel']


# ---- densify


def test_pruned_entries_begin_at_0_whatever_was_written_there():
  old, new = stage('spdf(sparsity=0.5)'), stage('dense()', 1)
  made = operate('densify', old, new)
  assert jax.tree.structure(made) == jax.tree.structure(new.variables)
  want = logits('spdf(sparsity=0.5)', old.variables)
  np.testing.assert_allclose(logits('dense()', made), want, rtol=1e-5, atol=1e-5)
  assert all(0.3 < (w == 0).mean() < 0.7 for w in kernels(made))
  mask = old.variables['vars']['segment_0']['0_block']['ffn']['up']['mask']
  kernel = made['params']['segment_0']['0_block']['ffn']['up']['kernel']
  np.testing.assert_array_equal(kernel != 0, mask)


def test_a_mask_that_was_not_applied_is_not():
  old = stage('spdf(sparsity=0.5, dense=True)')
  made = operate('densify', old, stage('dense()', 1))
  jax.tree.map(np.testing.assert_array_equal, made, {'params': old.variables['params']})


def test_statistics_of_norms_stay():
  norms = dict(blocks__block__norm='power_norm()')
  old, new = stage('spdf(sparsity=0.5)', **norms), stage('dense()', 1, **norms)
  made = operate('densify', old, new)
  assert jax.tree.structure(made) == jax.tree.structure(new.variables)
  at = lambda v: v['vars']['segment_0']['0_block']['norm_ffn']
  jax.tree.map(np.testing.assert_array_equal, at(made), at(old.variables))


@pytest.mark.parametrize(
  'old, new',
  [
    ('spdf(sparsity=0.5)', 'spdf(sparsity=0.75)'),
    ('spdf(sparsity=0.5)', 'spdf(sparsity=0.5, dense=True)'),
    ('dense()', 'dense()'),
    ('dense()', 'spdf(sparsity=0.5)'),
    ('spdf(sparsity=0.5)', 'low_rank(rank=2)'),
  ],
)
def test_masks_are_expected_there_and_not_here(old, new):
  with pytest.raises(ValueError, match='a mask for matrices there and none here'):
    operate('densify', stage(old), stage(new, 1))


# ---- merge_structured


@pytest.mark.parametrize('passes', [4, 8])
@pytest.mark.parametrize('form', [RANK, BLOCKS])
def test_the_full_matrix_is_the_same_function(form, passes):
  """While the guide counts (a = 1/2 after 2 of 4 updates) and behind that."""
  old, new = stage(form.format(GUIDED), passes=passes), stage('dense()', 1)
  made = operate('merge_structured', old, new)
  assert jax.tree.structure(made) == jax.tree.structure(new.variables)
  want = logits(form.format(GUIDED), old.variables)
  np.testing.assert_allclose(logits('dense()', made), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('form', [RANK, BLOCKS])
def test_a_guide_that_does_not_count_goes(form):
  old, new = stage(form.format(GUIDED), passes=8), stage(form.format(''), 1)
  made = operate('merge_structured', old, new)
  assert jax.tree.structure(made) == jax.tree.structure(new.variables)
  want = logits(form.format(GUIDED), old.variables)
  np.testing.assert_allclose(logits(form.format(''), made), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  'old, new, words',
  [
    (RANK.format(GUIDED), RANK.format(''), 'the guide still has the weight 0.5; 0 is expected'),
    (RANK.format(GUIDED), BLOCKS.format(''), 'or the same with guided=0, are expected'),
    (RANK.format(GUIDED), RANK.format(GUIDED), 'or the same with guided=0, are expected'),
    ('dense()', 'dense()', r'structured_ffn\(...\) there, and here dense\(\)'),
    (RANK.format(''), 'low_rank(rank=4)', r'structured_ffn\(...\) there, and here dense\(\)'),
  ],
)
def test_other_matrices_are_refused(old, new, words):
  with pytest.raises(ValueError, match=words):
    operate('merge_structured', stage(old, passes=4), stage(new, 1))


# ---- add_head


@pytest.mark.parametrize('embed', ['tied()', 'tied(scale=3.0, multiple_of=8)'])
def test_a_head_is_added_to_a_table(embed):
  here = embed.replace('tied', 'untied')
  old, new = stage('dense()', embed=embed), stage('dense()', 1, embed=here)
  made = operate('add_head', old, new)
  assert jax.tree.structure(made) == jax.tree.structure(new.variables)
  same = logits('dense()', made, embed=here), logits('dense()', old.variables, embed=embed)
  np.testing.assert_array_equal(*same)


@pytest.mark.parametrize(
  'old, new',
  [
    ('stable()', 'untied()'),
    ('stable(norm=layer_norm(scale=False, bias=False))', 'untied()'),
    ('tied(bias=True)', 'untied()'),
    ('factorized(size=4)', 'untied()'),
    ('tied(scale=3.0)', 'untied()'),
    ('tied()', 'untied(scale=3.0)'),
    ('tied(multiple_of=8)', 'untied(multiple_of=16)'),
    ('untied()', 'untied()'),
    ('tied()', 'tied()'),
    ('tied()', 'stable(tied=False)'),
  ],
)
def test_more_than_a_table_is_refused(old, new):
  with pytest.raises(ValueError, match='one table and nothing beside it there.* are expected'):
    operate('add_head', stage('dense()', embed=old), stage('dense()', 1, embed=new))
