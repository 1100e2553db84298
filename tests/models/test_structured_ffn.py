"""Structured feed-forward: each structure entry by entry, shares of parameters and FLOPs,
self-guided training through its phases, the merged matrix, refusals by name.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
import numpy as np
import pytest

import _linears
import _table
from lmjax import build
from lmjax import config
from lmjax import flops
from lmjax import registry
from lmjax.models.linears import _structured_ffn
from lmjax.models.linears import structured_ffn
from lmjax.nn import params as params_lib
from lmjax.parallel import facts as facts_lib
from lmjax.parallel import mesh as mesh_lib
from lmjax.parallel import shard

pytestmark = pytest.mark.slow  # minutes of compiling

KINDS = {
  'low_rank': 'kind="low_rank", rank=4',
  'block_dense': 'kind="block_dense", rank=4, blocks=2',
  'block_shuffle': 'kind="block_shuffle", blocks=2',
}
kinds = pytest.mark.parametrize('kind', KINDS)
sides = pytest.mark.parametrize('n, m', [(6, 12), (12, 6), (8, 8)])


def module(args, n, m, bias=False):
  return registry.make('linear', f'structured_ffn({args})')(
    ins=(('embed', n),),
    outs=(('mlp', m),),
    role='hidden',
    scheme=_table.scheme(),
    bias=bias,
    parent=None,
  )


def first(args, n, m, key=0):
  made = module(args, n, m)
  return made, facts_lib.unbox(made.init(jax.random.key(key), jnp.zeros((1, 1, n))))


def through(kind, x, down, up, blocks=2):
  """The definition, one number at a time; x (n,) in float64."""
  if kind == 'low_rank':
    return (x @ down) @ up
  b, step = blocks, len(x) // blocks
  h = np.concatenate([x[k * step : (k + 1) * step] @ down[k] for k in range(b)])
  if kind == 'block_dense':
    return h @ up
  y = np.zeros(b * up.shape[2])
  for l in range(b):
    got = h[l::b] @ up[l]  # block l takes every b-th number
    for s, value in enumerate(got):
      y[s * b + l] = value
  return y


@kinds
@sides
def test_the_product_is_that_of_the_definition(kind, n, m):
  made, found = first(KINDS[kind], n, m)
  found = {'params': _table.stir(found['params'])}
  x = _table.normal(2, 3, n, seed=4)
  p = _table.numpy64(found['params'])
  want = [through(kind, row, p['down'], p['up']) for row in np.float64(x).reshape(-1, n)]
  _table.close(made.apply(found, x), np.reshape(want, (2, 3, m)), 1e-5)
  full = np.float64(_structured_ffn.matrix(**found['params']))
  _table.close(np.float64(x) @ full, np.reshape(want, (2, 3, m)), 1e-5)


def shuffle(down, up):
  """The matrix of a block_shuffle of 8 to 8 with 2 blocks."""
  made = module(KINDS['block_shuffle'], 8, 8)
  factors = dict(down=jnp.float32(down), up=jnp.float32(up))
  return np.asarray(made.apply({'params': factors}, jnp.eye(8)[None])[0])


def test_shuffles_cancel_and_mix():
  one, drawn = np.stack([np.eye(4)] * 2), np.random.default_rng(0).normal(size=(2, 2, 4, 4))
  np.testing.assert_array_equal(shuffle(one, one), np.eye(8))
  diagonal = np.zeros((8, 8))
  diagonal[:4, :4], diagonal[4:, 4:] = drawn[0]
  _table.close(shuffle(drawn[0], one), diagonal, 1e-6)
  i, j = np.indices((8, 8))
  np.testing.assert_array_equal(shuffle(one, drawn[1]) != 0, i % 2 == j % 2)
  assert np.all(shuffle(*drawn) != 0)


@pytest.mark.parametrize('n, m', [(24, 60), (60, 24)])
def test_low_rank_starts_from_the_best_approximation_of_a_gaussian(n, m):
  """Balanced factors, their singular values the largest of a Gaussian matrix of std 0.02."""
  _, found = first('kind="low_rank", rank=8', n, m)
  down, up = (np.float64(found['params'][k]) for k in ('down', 'up'))
  size = np.linalg.svd(down @ up, compute_uv=False)[:8]
  _table.close(down.T @ down, np.diag(size), 1e-5)
  _table.close(up @ up.T, np.diag(size), 1e-5)
  draws = 0.02 * np.random.default_rng(0).normal(size=(200, n, m))
  usual = np.linalg.svd(draws, compute_uv=False)[:, :8]
  assert np.all(np.abs(size - usual.mean(0)) < 6 * usual.std(0))


@pytest.mark.parametrize('kind', ['block_dense', 'block_shuffle'])
@sides
def test_blocks_start_orthogonal_and_different(kind, n, m):
  _, found = first(KINDS[kind], n, m)
  for name, x in found['params'].items():
    x = np.float64(x)
    np.testing.assert_allclose(np.linalg.svd(x, compute_uv=False), 1, atol=1e-5, err_msg=name)
    assert x.ndim == 2 or not np.allclose(x[0], x[1]), name


@pytest.mark.parametrize(
  'args, share',
  [
    ('kind="low_rank", rank=384', 0.625),
    ('kind="block_dense", rank=512, blocks=2', 0.625),
    ('kind="block_shuffle", blocks=2', 0.625),
    ('kind="low_rank", rank=192', 0.3125),
    ('kind="block_dense", rank=256, blocks=2', 0.3125),
    ('kind="block_shuffle", blocks=4', 0.3125),
  ],
)
def test_the_shares_of_the_paper(args, share):
  """Parameters and FLOPs of feed-forward 768 -> 3072 -> 768; the rest is what it was."""

  def counted(linear):
    changes = [('model.width', '768'), ('model.ffn', 'gelu()'), ('model.linear', linear)]
    made = build.build(config.resolve(config.load('quickstart', changes)))
    return build.counts(made), flops.per_token(made).matrices

  (full, work), (own, less) = counted('dense()'), counted(f'structured_ffn({args})')
  ffn = 'segment_0/0_block/ffn'
  assert own[ffn] == share * full[ffn] == share * 4 * 2 * 768 * 3072
  assert {k: v for k, v in own.items() if k not in (ffn, 'total')} == {
    k: v for k, v in full.items() if k not in (ffn, 'total')
  }
  assert work - less == 2 * (1 - share) * full[ffn]


def test_only_feed_forward_is_structured():
  params = _linears.matrices(_linears.run(f'structured_ffn({KINDS["low_rank"]})').shapes['params'])
  full = _linears.matrices(_linears.run('dense()').shapes['params'])
  for name in ('q', 'k', 'v', 'out'):
    assert params[name] == full[name], name
  for name in ('gate', 'up', 'down'):
    assert set(params[name]) == {'down', 'up', 'bias'}, name
  dense, own = (_linears.start(s) for s in ('dense()', f'structured_ffn({KINDS["low_rank"]})'))
  jax.tree.map(_table.same, *(_linears.layer(s.params)['mixer'] for s in (dense, own)))


@kinds
@pytest.mark.parametrize('name', _linears.MESHES)
@pytest.mark.parametrize('axes', [('embed', 'mlp'), ('mlp', 'embed')])
def test_a_mesh_changes_neither_product_nor_gradient(kind, name, axes):
  made = registry.make('linear', f'structured_ffn({KINDS[kind]})')(
    ins=((axes[0], 16),),
    outs=((axes[1], 24),),
    role='hidden',
    scheme=_table.scheme(),
    bias=True,
    parent=None,
  )
  boxed = _table.abstract(made, jnp.zeros((1, 1, 16)))
  params, x = _table.values(boxed)['params'], _table.normal(8, 2, 16, seed=4)
  f = jax.value_and_grad(lambda p, x: jnp.sum(jnp.sin(made.apply({'params': p}, x))), (0, 1))
  want = jax.tree.map(np.asarray, jax.jit(f)(params, x))
  mesh = mesh_lib.make(_linears.MESHES[name])
  with jax.set_mesh(mesh):
    place = lambda x, names: jax.device_put(x, NamedSharding(mesh, shard.spec(names)))
    facts = facts_lib.facts(boxed['params'])
    params = jax.tree.map(lambda f, p: place(p, f.names), facts, params, is_leaf=facts_lib.is_fact)
    got = jax.jit(f)(params, place(x, ('batch', 'time', *params_lib.act(axes[:1]))))
    _table.trees_close(jax.tree.map(np.asarray, got), want, 1e-5)


# ------------------------------------------------------- self-guided training

STEPS = 6
GUIDED = f'structured_ffn({KINDS["block_shuffle"]}, guided=0.5, steps={STEPS})'
PLAIN = f'structured_ffn({KINDS["block_shuffle"]})'
STOCHASTIC = GUIDED.replace('guided=0.5', 'guided=0.5, stochastic=True')


def passes(state):
  return {int(x) for leaf in jax.tree.leaves(state.vars) for x in np.ravel(leaf)}


@functools.cache
def guided(steps, *changes):
  """(losses, state) behind so many steps."""
  state = _linears.start(GUIDED, *changes) if steps == 0 else guided(steps - 1, *changes)[1]
  made = step_of(GUIDED, *changes)
  if steps == 0:
    return None, state
  state, metrics = made(state, _linears.batch(_linears.run(GUIDED, *changes)), jax.random.key(1))
  return float(metrics['loss'][0] / metrics['loss'][1]), state


@functools.cache
def step_of(linear, *changes):
  return jax.jit(_linears.run(linear, *changes).step)


def factors(tree):
  ffn = _linears.layer(tree)['ffn']
  return {k: {n: v[n] for n in ('down', 'up')} for k, v in ffn.items()}


def guides(tree):
  return {k: v['guide'] for k, v in _linears.layer(tree)['ffn'].items()}


def test_the_guide_starts_as_the_product_and_the_first_loss_is_that_of_the_plain_part():
  state, plain = _linears.start(GUIDED), _linears.start(PLAIN)
  jax.tree.map(_table.same, factors(state.params), factors(plain.params))
  for name, own in factors(state.params).items():
    want = jax.vmap(_structured_ffn.matrix)(own['down'], own['up'])
    _table.close(guides(state.params)[name], want, 1e-5)
  _, want = step_of(PLAIN)(plain, _linears.batch(_linears.run(PLAIN)), jax.random.key(1))
  assert guided(1)[0] == pytest.approx(float(want['loss'][0] / want['loss'][1]), rel=1e-5)


def test_a_falls_by_a_cosine():
  got = [float(structured_ffn.share(t, 4.0)) for t in range(6)]
  half = math.sqrt(0.5)
  assert got == pytest.approx([1, (1 + half) / 2, 0.5, (1 - half) / 2, 0, 0], abs=1e-6)
  assert got[0] == 1 and got[4] == 0 == got[5]


def test_the_mixture_is_what_it_says_and_guides_alone_learn_at_first():
  made, found = first(f'{KINDS["low_rank"]}, guided=1.0, steps=4', 8, 12)
  params, x = _table.stir(found['params']), _table.normal(2, 3, 8, seed=4)
  p, rngs = _table.numpy64(params), {'dropout': jax.random.key(0)}
  f = lambda p, x, vars: made.apply({'params': p, **vars}, x)
  slope = jax.grad(lambda *args: jnp.sum(jnp.sin(f(*args))))
  every = {'down', 'up', 'guide'}
  for t, learning in enumerate(({'guide'}, every, every, every, {'down', 'up'})):
    vars = {'vars': {'passes': jnp.int32(t)}}
    a = 0.5 * (1 + math.cos(math.pi * t / 4))
    want = a * p['guide'] + (1 - a) * p['down'] @ p['up']
    _table.close(f(params, x, vars), np.float64(x) @ want, 1e-5)
    assert {k for k, g in slope(params, x, vars).items() if np.any(g != 0)} == learning
    _, new = made.apply({'params': params, **vars}, x, rngs=rngs, mutable=['vars'])
    assert int(new['vars']['passes']) == t + 1
    _, new = made.apply({'params': params, **vars}, x, mutable=['vars'])  # an evaluation
    assert int(new['vars']['passes']) == t


def test_training_counts_and_evaluation_does_not():
  assert [passes(guided(t)[1]) for t in range(3)] == [{0}, {1}, {2}]
  made, state = _linears.run(GUIDED), guided(2)[1]
  loss = jax.jit(lambda s, b: made.objective.loss(s.params, s.vars, b, jax.random.key(0), False))
  assert passes(state.replace(vars=loss(state, _linears.batch(made)).vars)) == {2}
  bad = state.replace(params=jax.tree.map(lambda p: p * jnp.nan, state.params))
  refused, _ = step_of(GUIDED)(bad, _linears.batch(made), jax.random.key(1))
  assert passes(refused) == {2} and int(refused.skipped) == 1


def test_micro_batches_make_one_update():
  """With the config's number both halves of a batch see the same mixture: losses are the same."""
  halves = GUIDED.replace('steps=', 'micro_batches=2, steps=')
  state = _linears.start(GUIDED)
  step = step_of(halves, ('micro_batches', 2))
  for t in range(2):
    state, metrics = step(state, _linears.batch(_linears.run(GUIDED)), jax.random.key(1))
    loss = float(metrics['loss'][0] / metrics['loss'][1])
    assert loss == pytest.approx(guided(t + 1)[0], rel=1e-5)
  assert passes(state) == {4}


def test_the_guide_rests_when_its_phase_is_over_and_is_dropped():
  """Behind 3 of 6 steps a run without it goes on alike."""
  linear = _linears.run(GUIDED).model.scheme.linear
  variables = lambda state: {'params': state.params, **state.vars}
  with pytest.raises(ValueError, match='the guide still has the weight 0.25; 0 is expected'):
    structured_ffn.drop(linear, variables(guided(2)[1]))
  state = guided(3)[1]
  left = structured_ffn.drop(linear, variables(state))
  plain = _linears.run(PLAIN)
  assert jax.tree.structure(left) == jax.tree.structure(plain.shapes)
  rows, key = _linears.batch(plain), jax.random.key(0)
  slope = lambda made: jax.jit(jax.grad(lambda p, v: made.objective.loss(p, v, rows, key).sum))
  own = slope(_linears.run(GUIDED))(state.params, state.vars)
  assert not any(np.any(g) for g in jax.tree.leaves(guides(own)))
  want = slope(plain)(left['params'], {})
  _table.trees_close(factors(own), factors(want), 1e-5)


def test_a_stochastic_pass_takes_the_mixture_or_the_factors_alone():
  """As often as a says; evaluations always take the mixture."""
  made, found = first(f'{KINDS["low_rank"]}, guided=1.0, steps=3, stochastic=True', 8, 12)
  params, x = _table.stir(found['params']), _table.normal(2, 3, 8, seed=4)
  variables = {'params': params, 'vars': {'passes': jnp.int32(1)}}  # a = 3/4
  p, x64 = _table.numpy64(params), np.float64(x)
  alone = x64 @ p['down'] @ p['up']
  both = 0.75 * x64 @ p['guide'] + 0.25 * alone
  _table.close(made.apply(variables, x), both, 1e-5)
  f = jax.jit(jax.vmap(lambda key: made.apply(variables, x, rngs={'dropout': key})))
  taken = 0
  for y in np.asarray(f(jax.random.split(jax.random.key(0), 400))):
    near = [np.allclose(y, want, atol=1e-4) for want in (both, alone)]
    assert sum(near) == 1
    taken += near[0]
  assert abs(taken - 300) < 5 * math.sqrt(75)


@pytest.mark.parametrize('mesh', _linears.MESHES)
def test_a_mesh_changes_neither_guided_training_nor_its_draws(mesh):
  state = _linears.on_a_mesh(mesh, STOCHASTIC)
  assert passes(state) == {3}
  assert _linears.pieces(guides(state.params)) == dict(
    gate=(2, 8, 24), up=(2, 8, 24), down=(2, 24, 8)
  )


# ------------------------------------------------------- the matrix they stand for


def check_merged(linear, state):
  """The merged variables are those of full matrices, and give the same hidden states."""
  made, dense = _linears.run(linear), _linears.run('dense()')
  variables = {'params': state.params, **state.vars}
  out = structured_ffn.merge(made.model.scheme.linear, variables, made.facts['params'])
  assert jax.tree.structure(out) == jax.tree.structure(dense.shapes)
  jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), out, dense.shapes)
  tokens = _linears.batch(made)['tokens'][:2, :16]
  hidden = lambda run, v: run.architecture.apply(v, tokens, _table.ctx(2, 16)).hidden_BTD
  _table.close(hidden(dense, out), hidden(made, variables), 1e-4)


@kinds
def test_merged_factors_are_the_same_function(kind):
  linear = f'structured_ffn({KINDS[kind]})'
  state = _linears.start(linear)
  check_merged(linear, state.replace(params=_table.stir(state.params, scale=0.05)))


@pytest.mark.parametrize('steps', [2, 3])
def test_a_guide_is_merged_with_the_weight_that_it_has(steps):
  check_merged(GUIDED, guided(steps)[1])


# ------------------------------------------------------- refusals


@pytest.mark.parametrize(
  'args, said',
  [
    ('rank=32', 'rank=32 is not accepted: .*ffn/gate is 32 x 48'),
    ('kind="block_dense", rank=32, blocks=2', 'rank=32 is not accepted: .*ffn/gate is 32 x 48'),
    ('kind="block_dense", rank=20, blocks=5', 'blocks=5 is not accepted: .*ffn/gate is 32 x 48'),
    ('kind="block_shuffle", blocks=32', 'blocks=32 is not accepted: .*ffn/gate is 32 x 48'),
  ],
)
def test_sizes_that_do_not_fit_are_refused_by_the_name_of_the_matrix(args, said):
  with pytest.raises(ValueError, match=rf'config\.model\.linear: structured_ffn\.{said}'):
    _linears.run(f'structured_ffn({args})')


def test_matrices_of_several_axes_are_refused():
  made = registry.make('linear', 'structured_ffn(rank=2)')(
    ins=(('embed', 6),),
    outs=(('heads', 2), ('mlp', 6)),
    role='hidden',
    scheme=_table.scheme(),
    bias=False,
    parent=None,
  )
  with pytest.raises(ValueError, match='takes matrices with one axis on each side, .* has 1 and 2'):
    made.init(jax.random.key(0), jnp.zeros((1, 1, 6)))


@pytest.mark.parametrize(
  'args, said',
  [
    ('kind="monarch"', "'low_rank' or 'block_dense' or 'block_shuffle' is expected"),
    ('', "rank=None: kind='low_rank' expects a positive number"),
    ('rank=4, blocks=2', "blocks=2: kind='low_rank' has no use for it"),
    ('kind="block_dense", rank=4', "blocks=None: kind='block_dense' expects a positive number"),
    ('kind="block_dense", rank=5, blocks=2', 'rank=5 does not divide by blocks=2'),
    ('kind="block_shuffle", rank=4, blocks=2', "rank=4: kind='block_shuffle' has no use for it"),
    ('kind="block_shuffle", blocks=0', "blocks=0: kind='block_shuffle' expects a positive"),
    ('rank=4, guided=1.5, steps=9', 'guided=1.5: a share of the steps, from 0 to 1, is expected'),
    ('rank=4, guided=0.5', 'steps=0: guided=0.5 needs config.steps here'),
    ('rank=4, steps=9', 'stochastic=False, steps=9: they need guided above 0'),
    ('rank=4, stochastic=True', 'stochastic=True, steps=0: they need guided above 0'),
    ('rank=4, micro_batches=0', 'micro_batches=0: a positive number is expected'),
  ],
)
def test_bad_arguments_are_refused(args, said):
  with pytest.raises(ValueError, match=said):
    registry.make('linear', f'structured_ffn({args})')


@pytest.mark.parametrize('key, other', [('steps', '1801'), ('micro_batches', '2')])
def test_steps_of_another_run_are_refused(key, other):
  """Guidance by 1800 steps would end at the wrong one, without a word."""
  guided = ('model.linear', 'structured_ffn(rank=4, guided=0.5, steps=1800)')
  build.build(config.resolve(config.load('quickstart', [guided])))
  with pytest.raises(ValueError, match=f'structured_ffn.{key}=.* but config.{key}={other}'):
    build.build(config.resolve(config.load('quickstart', [guided, (key, other)])))
