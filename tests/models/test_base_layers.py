"""BASE layers: equal loads in training, choices of their own elsewhere, the gate's gradient, groups
that are shuffled, meshes.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
import numpy as np
import pytest

import _meshes
import _table
from lmjax import build
from lmjax import config
from lmjax import kinds
from lmjax import registry
from lmjax.kernels import assignment
from lmjax.models.ffn import _travel
from lmjax.models.ffn import base_layers
from lmjax.parallel import facts as facts_lib
from lmjax.parallel import mesh as mesh_lib
from lmjax.parallel import shard

E, WIDTH, ROWS, STEPS = 4, 12, 8, 8
SMALL = f'base_layers(experts={E}, hidden=24)'
DEALT = f'base_layers(experts={E}, hidden=24, bias=True, groups=4)'
KEY = {'dropout': jax.random.key(3)}


def segments():
  found = np.ones((ROWS, STEPS), np.int32)
  found[0, 5:], found[3, :], found[6, 2:] = 0, 0, 0
  return found


def context(train, rows=ROWS, seg=None):
  seg = segments() if seg is None else seg
  positions = jnp.zeros((rows, STEPS), jnp.int32)  # nobody asks
  return _table.ctx(rows, STEPS, segments=seg, positions=positions, train=train)


@functools.cache
def part(spec):
  module = registry.make('ffn', spec)(parent=None)
  boxed = _table.abstract(
    module, _table.normal(1, STEPS, WIDTH), context(False, 1, np.ones((1, 8)))
  )
  return module, _table.values(boxed), facts_lib.facts(boxed)


@functools.partial(jax.jit, static_argnames=('spec', 'train'))
def forward(variables, x, seg, key, *, spec, train):
  return part(spec)[0].apply(variables, x, context(train, len(x), seg), rngs={'dropout': key})


def run(x, spec=SMALL, train=True, seg=None, key=3, variables=None):
  seg = jnp.asarray(segments() if seg is None else seg)
  variables = part(spec)[1] if variables is None else variables
  return forward(variables, x, seg, jax.random.key(key), spec=spec, train=train)


def tokens(seed=1):
  return _table.normal(ROWS, STEPS, WIDTH, seed=seed)


def through(x, expert, p):
  """y of tokens whose experts are given, in jax, each token by itself."""
  h = x - jnp.mean(x, -1, keepdims=True)
  h = h / jnp.sqrt(jnp.mean(h * h, -1, keepdims=True) + 1e-5) * p['scale_0'][expert]
  hidden = jax.nn.relu(jnp.einsum('nd,ndf->nf', h, p['up_0'][expert]))
  gate = jax.nn.sigmoid(jnp.sum(x * p['centroids'].T[expert], -1, keepdims=True))
  return gate * jnp.einsum('nf,nfd->nd', hidden, p['down_0'][expert])


def test_training_takes_the_balanced_experts_and_gradient_goes_by_the_gate_alone():
  x, real = tokens(), jnp.asarray(segments() > 0)
  p = part(SMALL)[1]['params']
  scores = x.reshape(-1, WIDTH) @ p['centroids']
  expert, _ = jax.jit(assignment.balanced)(scores, real.reshape(-1))
  assert (expert != jnp.where(real.reshape(-1), jnp.argmax(scores, -1), E)).any()  # not the greedy

  def want(p, x):
    y = through(x.reshape(-1, WIDTH), expert, p).reshape(x.shape)
    return jnp.where(real[..., None], y, 0)

  weight = _table.normal(*x.shape, seed=5)
  got = lambda p, x: run(x, variables={'params': p})[0]
  _table.close(got(p, x), jax.jit(want)(p, x), 1e-5)
  total = lambda f: lambda p, x: jnp.sum(f(p, x) * weight)
  slopes = [jax.jit(jax.grad(total(f), (0, 1)))(p, x) for f in (got, want)]
  _table.trees_close(*slopes, 2e-5)


@pytest.mark.parametrize('spec', [SMALL, DEALT])
def test_loads_are_equal_and_padding_takes_no_place(spec):
  x, real = tokens(), segments() > 0
  y, aux = run(x, spec)
  n = real.sum()
  groups = 4 if spec == DEALT else 1
  assert n / E - groups <= aux['load_min'] * n <= aux['load_max'] * n <= n / E + groups
  assert aux['load_max'] < run(x, spec, train=False)[1]['load_max']
  filled, told = run(jnp.where(real[..., None], x, jnp.nan), spec)
  np.testing.assert_array_equal(filled, y)
  assert not y[~real].any() and told == aux
  gate = jax.nn.sigmoid(x @ part(spec)[1]['params']['centroids'])[real]
  assert gate.min() < aux['confidence'] < gate.max() and 1 <= aux['rounds'] < 100
  seg = np.zeros_like(segments())
  assert not run(x, spec, seg=seg)[0].any()  # nothing but padding


@pytest.mark.parametrize('spec', [SMALL, DEALT])
def test_evaluation_looks_at_the_token_alone(spec):
  x, seg = tokens(), np.ones((ROWS, STEPS), np.int32)
  y = run(x, spec, train=False, seg=seg)[0]
  for t in (1, 4, 7):  # all that comes later is another text, and in other rows everything
    other = jnp.concatenate([x[:, :t], tokens(2)[:, t:]], 1).at[1:].set(tokens(3)[1:])
    np.testing.assert_allclose(
      run(other, spec, train=False, seg=seg)[0][0, :t], y[0, :t], rtol=1e-5, atol=1e-6
    )
  alone = [
    part(spec)[0].apply(part(spec)[1], x[:1, t : t + 1], _table.ctx(1, 1))[0] for t in range(3)
  ]
  np.testing.assert_allclose(jnp.concatenate(alone, 1), y[:1, :3], rtol=1e-5, atol=1e-6)
  skewed = x.at[:].add(4 * part(spec)[1]['params']['centroids'][:, 2])  # one expert gets nearly all
  got, aux = run(skewed, spec, train=False, seg=seg)
  assert aux['load_max'] > 0.9 and 'rounds' not in aux
  assert (np.abs(got).max(-1) > 0).all()  # and drops none
  again = run(skewed[:1], spec, train=False, seg=seg[:1])[0]
  np.testing.assert_allclose(again, got[:1], rtol=1e-5, atol=1e-6)


def test_later_tokens_count_in_training():
  x, seg = tokens(), np.ones((ROWS, STEPS), np.int32)
  other = jnp.concatenate([x[:, :4], tokens(2)[:, 4:]], 1)
  assert (np.abs(run(x, seg=seg)[0] - run(other, seg=seg)[0])[:, :4] > 1e-3).any()


def test_first_values_make_the_layer_the_identity():
  module = registry.make('ffn', 'base_layers(experts=4, hidden=24, sublayers=2)')(parent=None)
  x = tokens()
  p = facts_lib.unbox(jax.jit(module.init)(jax.random.key(0), x, context(False)))['params']
  w = np.asarray(p['centroids'])
  np.testing.assert_allclose(w.T @ w, 0.01 * np.eye(E), atol=1e-7)
  assert not p['down_0'].any() and not p['down_1'].any() and (p['scale_1'] == 1).all()
  flat = np.asarray(p['up_0']).reshape(E, -1)
  assert (np.abs(np.corrcoef(flat)[~np.eye(E, dtype=bool)]) < 0.3).all()  # each expert its own
  np.testing.assert_allclose(flat.std(1), WIDTH**-0.5, rtol=0.2)  # one expert's fan-in
  assert not jax.jit(module.apply)({'params': p}, x, context(True))[0].any()
  half = base_layers.orthogonal(jax.random.key(0), (WIDTH, E), jnp.bfloat16)
  assert half.dtype == jnp.bfloat16
  _table.close(half.astype(jnp.float32).T @ half.astype(jnp.float32), 0.01 * np.eye(E), 0.02)


def test_groups_take_equally_many_from_every_block_at_random_and_give_all_back():
  groups, size = 3, 12
  ids = jnp.arange(groups * size).reshape(groups, size)
  seen = []
  for seed in (0, 1):
    deal, collect = _travel._shuffled((), groups, size, jax.random.key(seed))
    dealt = np.asarray(deal(ids))
    for group in dealt:
      assert np.bincount(group // size).tolist() == [size // groups] * groups
    assert sorted(dealt.ravel()) == list(range(groups * size))
    np.testing.assert_array_equal(collect(deal(ids)), ids)
    seen.append(dealt)
  assert (seen[0] != seen[1]).any()
  assert (np.sort(seen[0] % size)[:, :4] != np.arange(4)).any()  # no block in its old order


def test_each_step_shuffles_anew_and_each_group_is_balanced():
  x, seg = tokens(), np.ones((ROWS, STEPS), np.int32)
  first, second = run(x, DEALT, seg=seg, key=0), run(x, DEALT, seg=seg, key=1)
  assert (np.abs(first[0] - second[0]) > 1e-3).any()
  for _, aux in (first, second):
    assert aux['load_min'] == aux['load_max'] == 1 / E  # 16 tokens a group, 4 for each expert
  np.testing.assert_array_equal(run(x, seg=seg, key=0)[0], run(x, seg=seg, key=1)[0])  # one group


MESHES = {
  'auto': _meshes.settings(data=2, expert=2, tensor=2),
  'explicit': _meshes.settings('explicit', replica=2, expert=2, tensor=2),
  'zero': _meshes.settings('explicit', data=4, tensor=2),
}


def both(train, mesh=None):
  """y, expert loads and the gradients of parameters and x."""
  module, variables, facts = part(DEALT)
  x, seg, weight = tokens(), jnp.asarray(segments()), _table.normal(ROWS, STEPS, WIDTH, seed=5)
  ctx = context(train)
  if mesh is not None:
    put = lambda a, names: jax.device_put(a, NamedSharding(mesh, shard.spec(names)))
    variables = jax.tree.map(
      lambda f, a: put(a, f.names), facts, variables, is_leaf=facts_lib.is_fact
    )
    x, weight = (put(a, ('batch', None, None)) for a in (x, weight))
    ctx = ctx.replace(segments_BT=put(seg, ('batch', None)))

  def total(variables, x, ctx):
    y, aux = module.apply(variables, x, ctx, rngs=KEY)
    return jnp.sum(y * weight), (y, aux)

  found = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(variables, x, ctx)
  return jax.tree.map(np.asarray, found)


@pytest.mark.skipif(jax.device_count() < 8, reason='eight devices are needed')
@pytest.mark.parametrize(
  'mesh, train',
  [
    ('explicit', False),
    *(pytest.param(m, True, marks=pytest.mark.slow) for m in ('auto', 'explicit', 'zero')),
  ],
)
def test_a_mesh_changes_neither_choices_nor_gradient(mesh, train):
  made, facts = mesh_lib.make(MESHES[mesh]), part(DEALT)[2]  # made outside the mesh
  with jax.set_mesh(made):
    spread = shard.pieces(made, facts['params']['up_0'].names, (E, WIDTH, 24))[1]
    sizes = dict(data=1, expert=1) | MESHES[mesh]
    # experts apart, their inputs and hidden units too
    assert spread == (E // sizes['expert'], WIDTH // sizes['data'], 12)
    got = both(train, made)
  _table.trees_close(got, both(train), 2e-5)


@pytest.mark.skipif(jax.device_count() < 8, reason='eight devices are needed')
def test_what_does_not_fit_a_mesh_is_refused():
  made = mesh_lib.make(MESHES['auto'])
  with jax.set_mesh(made):
    with pytest.raises(
      ValueError, match='groups=2 .*cut in 4 .*data=2 x config.mesh.expert=2.: .*multiple'
    ):
      _travel.check(64, 2)
    with pytest.raises(ValueError, match="'expert' of size 5 does not divide over 2 devices"):
      shard.pieces(made, ('expert', 'embed', 'mlp'), (5, WIDTH, 24), 'up_0')


@pytest.mark.parametrize(
  'spec, match',
  [
    ('base_layers(experts=1)', 'experts=1: from 2 to'),
    ('base_layers(experts=100000)', 'experts=100000: from 2 to 65536'),
    ('base_layers(sublayers=0)', 'sublayers=0: from 1 to'),
    ('base_layers(groups=0)', 'groups=0: from 1 to'),
    ('base_layers(hidden=0)', 'hidden=0: a positive size'),
    ('base_layers(mult=-1.0)', 'mult=-1.0: a positive'),
  ],
)
def test_arguments_that_make_no_sense_are_refused(spec, match):
  with pytest.raises(ValueError, match=match):
    registry.make('ffn', spec)


def test_a_config_with_groups_that_do_not_divide_is_refused():
  small = {'model.width': '32', 'model.depth': '1', 'model.mixer.head_dim': '16'}
  small |= {'data.length': '16', 'batch_tokens': '144'}  # 9 rows
  for more, match in (
    ({'model.ffn': 'base_layers(groups=5)'}, 'groups=5 is not accepted with 144 tokens'),
    (
      {'model.ffn': 'base_layers()', 'model.linear': 'low_rank(rank=4)'},
      'low_rank.* full matrices',
    ),
  ):
    c = config.load('quickstart', list((small | more).items()))
    with pytest.raises(ValueError, match=match):
      build.build(config.resolve(c))


def test_other_parameterizations_are_refused():
  ctx = _table.ctx(ROWS, STEPS, linear='low_rank(rank=2)')
  with pytest.raises(kinds.Unsupported, match='full matrices'):
    part(SMALL)[0].init(jax.random.key(0), tokens(), ctx)


@pytest.mark.slow
def test_recomputed_layers_shuffle_alike():
  """A backward pass with another shuffle would differentiate another function."""
  how = dict(ffn=DEALT, depth=1, width=WIDTH)
  how |= dict(blocks__block__mixer='gqa(head_dim=6)')
  batch = _table.batch(np.ones((ROWS, STEPS)))
  ctx = kinds.Ctx(batch['positions'], batch['segments'], train=True)
  found = []
  for remat in ('none', 'full'):
    net = _table.model(length=STEPS, remat=remat, **how)
    params = _table.model_params(length=STEPS, **how)
    f = lambda p, net=net: jnp.sum(
      net.apply(p, batch['tokens'], ctx, rngs=KEY).hidden_BTD[..., 0] ** 2
    )
    found.append(jax.jit(jax.grad(f))(params))
  _table.trees_close(*found, 2e-5)
