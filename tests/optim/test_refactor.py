"""Refactorization: the product stays, the factors become balanced, and when it happens."""

import functools

import jax
from jax.sharding import AxisType, NamedSharding
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lmjax import build
from lmjax import config
from lmjax import kinds
from lmjax import registry
from lmjax import train
from lmjax.optim import refactor
from lmjax.parallel import shard
from lmjax.parallel.facts import Fact

FACTS = dict(
  q=dict(
    down=Fact(('layers', 'embed', 'rank'), ('embed',)),
    up=Fact(('layers', 'rank', 'heads', 'head_dim'), ('rank',)),
    bias=Fact(('layers', 'heads', 'head_dim'), (), 'bias'),
  ),
  out=dict(  # contracted axes apart, the stack in the middle
    down=Fact(('heads', 'layers', 'head_dim', 'rank'), ('heads', 'head_dim'), 'residual'),
    up=Fact(('rank', 'layers', 'embed'), ('rank',), 'residual'),
  ),
  moe=dict(
    down=Fact(('layers', 'expert', 'embed', 'rank'), ('embed',)),
    up=Fact(('layers', 'expert', 'rank', 'mlp'), ('rank',)),
  ),
  norm=Fact(('layers', 'embed'), (), 'norm'),
)
SHAPES = dict(
  q=dict(down=(3, 8, 3), up=(3, 3, 4, 2), bias=(3, 4, 2)),
  out=dict(down=(4, 3, 2, 3), up=(3, 3, 8)),
  moe=dict(down=(3, 2, 8, 4), up=(3, 2, 4, 12)),
  norm=(3, 8),
)
is_shape = lambda x: isinstance(x, tuple)
PRODUCTS = dict(q='ler,lrhk->lehk', out='hlkr,rle->lhke', moe='lxer,lxrm->lxem')


def draw(seed=0, dtype='float32'):
  rng = np.random.default_rng(seed)
  one = lambda s: jnp.asarray(rng.standard_normal(s) * rng.uniform(0.3, 3, s[-1]), dtype)
  return jax.tree.map(one, SHAPES, is_leaf=is_shape)


def make(every=1, facts=None):
  return registry.make('optim', f'refactor(every={every})', facts=FACTS if facts is None else facts)


def moved(params, count=1, every=1):
  part = make(every)
  state = part().init(params)._replace(count=jnp.int32(count))
  retract = part.fact('retract')
  return jax.jit(lambda s, p: retract(s, p, FACTS))(state, params)


def products(params):
  return {
    k: np.einsum(e, np.float64(params[k]['down']), np.float64(params[k]['up']))
    for k, e in PRODUCTS.items()
  }


def squares(params):
  """(down^T down, up up^T) of each matrix, with the stack in front."""
  axes = dict(
    q=('ler,les', 'lrhk,lshk'), out=('hlkr,hlks', 'rle,sle'), moe=('lxer,lxes', 'lxrm,lxsm')
  )
  for k, (a, b) in axes.items():
    stack = 'lx' if k == 'moe' else 'l'
    down, up = np.float64(params[k]['down']), np.float64(params[k]['up'])
    yield np.einsum(f'{a}->{stack}rs', down, down), np.einsum(f'{b}->{stack}rs', up, up)


def test_the_product_stays_and_the_factors_are_balanced():
  params = draw()
  got = moved(params)
  for a, b in zip(products(got).values(), products(params).values()):
    np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())
  for left, right in squares(got):
    size = left.max()
    np.testing.assert_allclose(left, right, atol=1e-5 * size)
    np.testing.assert_allclose(left, left * np.eye(left.shape[-1]), atol=1e-5 * size)
    diagonal = np.diagonal(left, axis1=-2, axis2=-1)
    assert np.all(np.diff(diagonal) <= 1e-5 * size)  # largest first
  assert any(np.abs(a - b).max() > 0.1 for a, b in squares(params))  # they were not
  wanted = np.linalg.svd(products(params)['moe'][2, 1], compute_uv=False)[:4]
  *_, (left, _) = squares(got)
  np.testing.assert_allclose(np.diag(left[2, 1]), wanted, rtol=1e-5)


def test_what_is_no_factor_stays_to_the_bit():
  params = draw()
  got = moved(params)
  np.testing.assert_array_equal(got['norm'], params['norm'])
  np.testing.assert_array_equal(got['q']['bias'], params['q']['bias'])
  assert jax.tree.structure(got) == jax.tree.structure(params)


def test_one_product_has_one_split():
  """Whatever the factors were before: also signs are no accident."""
  params, m = draw(), np.random.default_rng(1).standard_normal((3, 3))
  terms = dict(q=('ler,rs->les', 'rs,lshk->lrhk'), out=('hlkr,rs->hlks', 'rs,sle->rle'))
  turned = dict(params)
  for k, (a, b) in terms.items():
    down = np.einsum(a, np.float64(params[k]['down']), m)
    up = np.einsum(b, np.linalg.inv(m), np.float64(params[k]['up']))
    turned[k] = params[k] | dict(down=jnp.float32(down), up=jnp.float32(up))
  got, want = moved(turned), moved(params)
  for k in ('q', 'out'):
    for n in ('down', 'up'):
      size = np.abs(want[k][n]).max()
      np.testing.assert_allclose(got[k][n], want[k][n], atol=3e-4 * size, err_msg=f'{k} {n}')
  down = np.asarray(want['moe']['down'])
  top = np.take_along_axis(down, np.abs(down).argmax(-2)[..., None, :], -2)
  assert np.all(top > 0)
  again = moved(want)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), again, want)


def test_gradients_pass_through_and_every_update_counts():
  tx, grads = make(3)(), draw(5)
  state = tx.init(draw())
  assert sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state)) == 4
  for i in range(1, 4):
    got, state = jax.jit(tx.update)(grads, state, draw())
    jax.tree.map(np.testing.assert_array_equal, got, grads)
    assert int(state.count) == i


def test_factors_move_behind_every_third_update_only():
  params = draw()
  for count in range(1, 8):
    same = np.array_equal(moved(params, count, 3)['q']['down'], params['q']['down'])
    assert same != (count in (3, 6)), count


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_low_precision_costs_one_rounding(dtype):
  params = draw(dtype=dtype)
  got = moved(params)
  want = moved(jax.tree.map(lambda x: x.astype(jnp.float32), params))
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
    assert a.dtype == dtype
    np.testing.assert_array_equal(a, b.astype(dtype))


def test_sharded_equals_unsharded():
  want = moved(draw())
  for kind in (AxisType.Auto, AxisType.Explicit):
    mesh = jax.make_mesh((2, 2), ('data', 'tensor'), axis_types=(kind, kind))
    with jax.set_mesh(mesh):
      to = jax.tree.map(lambda f, m=mesh: NamedSharding(m, shard.spec(f.names)), FACTS)
      got = moved(jax.device_put(draw(), to))
    for a, b, place in zip(*map(jax.tree.leaves, (got, want, to))):
      np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())
      assert a.sharding.is_equivalent_to(place, a.ndim), kind
  assert to['q']['up'].spec[2] == 'tensor'


# ------------------------------------------------------- refusals


def test_a_model_without_factors_is_refused():
  facts = dict(w=Fact(('embed', 'mlp'), ('embed',)))
  with pytest.raises(ValueError, match='refactor finds no pair of factors .* are expected'):
    make(facts=facts)()
  with pytest.raises(ValueError, match=r'config\.optim: refactor finds no pair .*low_rank'):
    build.build(config.resolve(config.load('quickstart', [('optim', 'adam() | refactor()')])))


@pytest.mark.parametrize('third', [('embed', 'rank'), ('rank', 'embed')])
def test_a_rank_that_three_share_is_refused(third):
  facts = dict(FACTS, q=FACTS['q'] | dict(more=Fact(third, third[:1])))
  with pytest.raises(ValueError, match='refactor finds down, more, up in q with the axis .rank.'):
    make(facts=facts)()
  with pytest.raises(ValueError, match='refactor finds down in q'):
    make(facts=dict(q=dict(down=FACTS['q']['down'])))()


# ------------------------------------------------------- in a step and a model


SETTINGS = (
  ('model.width', '16'),
  ('model.depth', '2'),
  ('model.linear', 'low_rank(rank=4)'),
  ('model.mixer.head_dim', '8'),
  ('data.length', '16'),
  ('batch_tokens', '64'),
  ('peak_lr', '0.0'),
  ('optim', 'clip() | reset(inner=adam(), every=2) | decay() | refactor(every=2)'),
)


@functools.cache
def run():
  return build.build(config.resolve(config.load('quickstart', list(SETTINGS))))


def test_every_matrix_of_the_layers_is_a_pair():
  found = refactor.pairs(run().facts['params'])
  names = {p.module[-1] for p in found}
  assert names == {'q', 'k', 'v', 'out', 'up', 'down'}
  assert all((p.down[0], p.up[0]) == ('down', 'up') for p in found)


def test_the_loss_before_is_the_loss_behind():
  """Without a rate nothing but the new split moves the parameters."""
  step, key = jax.jit(run().step), jax.random.key(1)
  batch = jax.tree.map(lambda s: jnp.ones(s.shape, s.dtype), run().batch_shapes())
  batch['tokens'] = jax.random.randint(key, batch['tokens'].shape, 0, 200)
  batch['positions'] = jnp.broadcast_to(jnp.arange(17), batch['tokens'].shape)
  state, losses, splits = run().init(jax.random.key(0)), [], []
  for _ in range(5):
    new, metrics = step(state, batch, key)
    losses.append(float(metrics['loss'][0] / metrics['loss'][1]))
    pairs = zip(jax.tree.leaves(state.params), jax.tree.leaves(new.params))
    splits.append(any(not np.array_equal(a, b) for a, b in pairs))
    state = new
  assert splits == [False, True, False, True, False]
  np.testing.assert_allclose(losses, losses[0], rtol=2e-6)


class Product:
  """The loss (x down up - 1)^2; a batch of NaN is a bad one."""

  def loss(self, params, vars, batch, rng, train=True):
    miss = batch @ params['q']['down'] @ params['q']['up'] - 1
    return kinds.Loss(jnp.sum(miss**2), jnp.float32(miss.size), {}, vars)


def test_a_refused_step_splits_nothing_and_does_not_count():
  facts = dict(
    q=dict(down=Fact(('embed', 'rank'), ('embed',)), up=Fact(('rank', 'mlp'), ('rank',)))
  )
  rng = np.random.default_rng(0)
  params = dict(q=dict(down=rng.standard_normal((6, 2)), up=rng.standard_normal((2, 5))))
  params = jax.tree.map(jnp.float32, params)
  parts = registry.make_chain('optim', 'adam() | refactor(every=2)', facts=facts)
  tx = optax.named_chain(*((k, optax.with_extra_args_support(p())) for k, p in parts.items()))
  factors = jax.tree.map(lambda _: 1.0, params)
  step = jax.jit(
    train.make_step(
      Product(),
      tx,
      lambda s: 1.0,
      peak_lr=0.01,
      lr_factors=factors,
      retract=build.retract(parts, facts),
    )
  )
  good, key = jnp.float32(rng.standard_normal((4, 6))), jax.random.key(0)
  state, split = train.init_state({'params': params}, tx), []
  for batch in (good, good * jnp.nan, good, good):
    old, (state, _) = state, step(state, batch, key)
    down, up = state.params['q']['down'], state.params['q']['up']
    split.append(bool(np.allclose(down.T @ down, up @ up.T, atol=1e-5)))
    if batch is not good:
      jax.tree.map(np.testing.assert_array_equal, state.params, old.params)
  assert split == [False, False, True, False]
  assert int(state.opt['refactor'].count) == 3
