"""Sophia: the clipped step and the renewal of the diagonal, which both forms share, and the
Gauss-Newton-Bartlett estimate.
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
from lmjax.objectives import _common

KEY = jax.random.key(0)
BOTH = pytest.mark.parametrize('name', ['sophia_g', 'sophia_h'])


def part(name='sophia_g', **args):
  return registry.make('optim', name)() if not args else registry.get('optim', name).obj(**args)


def given(curvature, weight=7.0, calls=None):
  """What the step hands over, for a loss whose Hessian diagonal is `curvature` wherever it is
  asked; `calls` grows by one when a derivative is taken.
  """

  def seen(x):
    if calls is not None:
      jax.debug.callback(lambda: calls.append(1))
    return x

  obj_fn = lambda p, one_in: jnp.sum(seen(curvature) * p * p) / 2
  # B s^2 = g^2 / B for the summed gradient g
  sample_fn = lambda p, rng, one_in: (
    jnp.sum(seen(jnp.sqrt(curvature * weight)) * p),
    jnp.float32(weight),
  )
  return dict(obj_fn=obj_fn, sample_fn=sample_fn, rng=KEY)


def signs(name):
  return dict(probe='rademacher') if name == 'sophia_h' else {}


@BOTH
def test_the_three_published_forms_are_one_algorithm(name):
  """lr of the step here is 1; eps decides in coordinate 3 and the bound in coordinate 0."""
  b1, b2, rho, eps, weight = 0.9, 0.5, 0.3, 1e-3, 7.0
  curvature = np.array([0.02, 0.5, 4.0, 1e-9])
  g = np.array([1.0, -0.8, 0.9, 5e-4])
  tx = part(name, b1=b1, b2=b2, rho=rho, eps=eps, every=1, **signs(name))
  p = jnp.ones(4)
  m = h = np.zeros(4)
  state = tx.init(p)
  for _ in range(3):
    u, state = tx.update(jnp.asarray(g, jnp.float32), state, p, **given(jnp.asarray(curvature)))
    m, h = b1 * m + (1 - b1) * g, b2 * h + (1 - b2) * curvature
    later = np.clip(m / np.maximum(rho * h, eps), -1, 1)
    first = 1 / rho * np.clip(m / np.maximum(h, eps / rho), -rho, rho)
    np.testing.assert_allclose(u, later, rtol=2e-5)
    np.testing.assert_allclose(later, first, rtol=1e-12)
    code = np.sign(m) * np.minimum(np.abs(m) / (rho * weight * (h / weight) + 1e-15), 1)
    np.testing.assert_allclose(u[:3], code[:3], rtol=2e-5)
    assert abs(u[0]) == 1 and 0 < abs(u[3]) < abs(code[3]) == 1


@BOTH
def test_without_curvature_the_step_is_the_sign_of_the_momentum(name):
  g = jnp.array([1e-6, -3.0, 0.0])
  tx = part(name, **signs(name))
  u, state = tx.update(g, tx.init(g), g, **given(jnp.zeros(3)))
  np.testing.assert_array_equal(u, [1, -1, 0])
  assert state.metrics['win_rate'] == 0 and float(state.metrics['clip_rate']) == pytest.approx(
    2 / 3
  )


def test_negative_curvature_gives_the_sign_too():
  g = jnp.array([1.0, -1e-3])
  tx = part('sophia_h', probe='rademacher')
  u, state = tx.update(g, tx.init(g), g, **given(jnp.array([-5.0, -5.0])))
  np.testing.assert_array_equal(u, [1, -1])
  assert np.all(np.asarray(state.h) < 0)


@BOTH
def test_the_diagonal_is_renewed_every_few_steps_and_computed_only_then(name):
  calls, p = [], jnp.ones(4)
  tx = part(name, b2=0.5, every=3, **signs(name))
  extra = given(jnp.full(4, 2.0), calls=calls)
  update = jax.jit(lambda g, s: tx.update(g, s, p, **extra))
  state, h, ran = tx.init(p), [], []
  for _ in range(7):
    _, state = jax.block_until_ready(update(p, state))
    jax.effects_barrier()
    h.append(float(state.h[0]))
    ran.append(len(calls) > 0)
    calls.clear()
  np.testing.assert_allclose(h, [1, 1, 1, 1.5, 1.5, 1.5, 1.75], rtol=1e-5)
  assert ran == [True, False, False, True, False, False, True]
  assert update._cache_size() == 1


@BOTH
def test_rates_are_shares_of_coordinates(name):
  """rho h is 0.25 and 2 at the first step: |m| lies below in 3 of 5 coordinates."""
  p = dict(a=jnp.ones(2), b=jnp.ones((3, 1)))
  g = dict(a=jnp.array([1.0, -0.2]), b=jnp.array([[0.0], [2.5], [0.1]]))
  tx = part(name, b1=0.0, b2=0.5, rho=0.25, every=10, **signs(name))
  extra = given(jnp.float32(1.0))
  each = dict(a=2.0, b=16.0)
  extra['obj_fn'] = lambda p, one_in: sum(jnp.sum(each[k] * p[k] ** 2) / 2 for k in p)
  extra['sample_fn'] = lambda p, rng, one_in: (
    sum(jnp.sum((7 * each[k]) ** 0.5 * p[k]) for k in p),
    jnp.float32(7.0),
  )
  _, state = tx.update(g, tx.init(p), p, **extra)
  got = {k: float(v) for k, v in state.metrics.items()}
  assert got == pytest.approx(
    dict(win_rate=3 / 5, clip_rate=2 / 5, hess_norm=(2 * 1 + 3 * 64) ** 0.5), rel=1e-5
  )
  _, state = tx.update(jax.tree.map(lambda x: 0 * x, g), state, p, **extra)
  assert state.metrics['clip_rate'] == 0, 'of this step'
  assert float(state.metrics['win_rate']) == pytest.approx(3 / 5), 'of the last renewal'


@BOTH
@pytest.mark.parametrize('curvature', [jnp.inf, jnp.nan])
def test_a_curvature_that_is_not_finite_makes_the_step_one_to_refuse(name, curvature):
  """Else m / inf = 0 would pass, and h stay infinite."""
  g = jnp.ones(2)
  tx = part(name, **signs(name))
  u, _ = tx.update(g, tx.init(g), g, **given(jnp.array([curvature, 1.0])))
  assert not np.all(np.isfinite(u))


@BOTH
@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_half_precision_parameters_keep_full_state(name, dtype):
  """h = 1e-6 and a gradient of 1e-6 squared are nothing in float16."""
  p, g = jnp.ones(3, dtype), jnp.full(3, 1e-4, dtype)
  tx = part(name, b1=0.0, b2=0.0, rho=1.0, eps=1e-12, **signs(name))
  u, state = tx.update(g, tx.init(p), p, **given(jnp.float32(4e-4)))
  assert u.dtype == dtype and state.m.dtype == state.h.dtype == jnp.float32
  np.testing.assert_allclose(state.h, 4e-4, rtol=1e-5)
  np.testing.assert_allclose(np.asarray(u, np.float32), float(g[0]) / 4e-4, rtol=1e-2)


# ---- Gauss-Newton-Bartlett


def test_softmax_regression_in_the_mean_over_draws():
  """B s^2 averages to mean_b x_bi^2 p_bj (1 - p_bj), over the weighted places only."""
  rng = np.random.default_rng(0)
  x_BTD = jnp.asarray(rng.standard_normal((2, 3, 4)), jnp.float32)
  unembed_VD = jnp.asarray(rng.standard_normal((5, 4)), jnp.float32)
  w_BT = jnp.array([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])

  def sample_fn(p, rng, one_in):
    out = kinds.Outputs(x_BTD, p, None, 1.0, None, None, {})
    total, _, _ = _common.cross_entropy(out, _common.draw(out, rng), w_BT)
    return total, jnp.sum(w_BT)

  tx = part(b2=0.0)
  zero = jnp.zeros_like(unembed_VD)

  def h(key):
    return tx.update(zero, tx.init(zero), unembed_VD, sample_fn=sample_fn, rng=key)[1].h

  got = jax.jit(lambda keys: jax.vmap(h)(keys).mean(0))(jax.random.split(KEY, 20_000))
  z = np.asarray(x_BTD, np.float64) @ np.asarray(unembed_VD, np.float64).T
  prob = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
  each = np.einsum('bti,btj,bt->ji', np.asarray(x_BTD) ** 2, prob * (1 - prob), w_BT) / 5
  np.testing.assert_allclose(got, each, rtol=0.08)
  np.testing.assert_allclose(np.sum(got), np.sum(each), rtol=0.02)


SIZES = dict(width=8, depth=1, length=6, vocab=5)
HOW = dict(
  SIZES, blocks__block__mixer='gqa(head_dim=4)', blocks__block__ffn='gelu(mult=1.0)', dropout=0.0
)
SEGMENTS = np.array([[1, 1, 1, 2, 2, 2, 2], [1, 1, 1, 1, 0, 0, 0]])  # 5 + 3 predicted tokens


@functools.cache
def language_model():
  """(objective, parameters, batch)."""
  objective = registry.make('objective', 'clm()', model=_table.model(**HOW))()
  params = dict(_table.model_params(**HOW)['params'])
  params['embed'] = jax.tree.map(lambda x: 0.3 * x, params['embed'])  # a model that doubts
  return objective, params, _table.batch(SEGMENTS, vocab=5)


@pytest.mark.slow
def test_a_language_model_in_the_mean_over_draws():
  """The diagonal of sum_t J_t^T (diag(p_t) - p_t p_t^T) J_t / B, for packed rows with padding."""
  objective, params, batch = language_model()
  zero = jax.tree.map(jnp.zeros_like, params)
  tx = part(b2=0.0)

  def h(key):
    sample_fn = lambda p, rng, one_in: objective.sample(p, {}, batch, rng)[:2]
    return tx.update(zero, tx.init(zero), params, sample_fn=sample_fn, rng=key)[1].h

  draws = jax.jit(lambda keys: jax.lax.map(h, keys, batch_size=100))(jax.random.split(KEY, 1000))
  ctx = kinds.Ctx(batch['positions'][:, :-1], batch['segments'][:, :-1])

  def logits(p):
    return embedding.logits(objective.model.apply({'params': p}, batch['tokens'][:, :-1], ctx))

  w = np.asarray(objective.weights(batch), np.float64)
  assert w.sum() == 8
  prob = np.asarray(jax.nn.softmax(logits(params)), np.float64)
  middle = np.einsum('btv,vu->btvu', prob, np.eye(5)) - np.einsum('btv,btu->btvu', prob, prob)
  jacobian = jax.jit(jax.jacrev(logits))(params)
  for (path, draw), j in zip(
    jax.tree_util.tree_leaves_with_path(draws), jax.tree.leaves(jacobian), strict=True
  ):
    j = np.asarray(j, np.float64).reshape(*prob.shape, -1)
    want = np.einsum('btvi,btvu,btui,bt->i', j, middle, j, w) / w.sum()
    got = np.asarray(draw, np.float64).reshape(1000, -1)
    error = got.std(0) / np.sqrt(len(got))
    off = (got.mean(0) - want) / np.maximum(error, 1e-9)
    assert np.sqrt(np.mean(off**2)) < 1.5, f'{path}: off by {off} standard errors'
    sums = got.sum(1)
    assert abs(sums.mean() - want.sum()) < 5 * sums.std() / np.sqrt(len(sums)), path


def test_omitting_the_number_of_tokens_would_give_a_share_of_it():
  """B s^2 with s the mean's gradient: for a summed gradient of 6 over 4 tokens it is 9."""
  tx, p = part(b2=0.0), jnp.ones(1)
  sample_fn = lambda p, rng, one_in: (jnp.sum(6 * p), jnp.float32(4.0))
  _, state = tx.update(p, tx.init(p), p, sample_fn=sample_fn, rng=KEY)
  np.testing.assert_allclose(state.h, 4 * (6 / 4) ** 2)


def test_nothing_to_predict_leaves_no_curvature():
  tx, p = part(), jnp.ones(2)
  sample_fn = lambda p, rng, one_in: (0 * jnp.sum(p), jnp.float32(0.0))
  _, state = tx.update(p, tx.init(p), p, sample_fn=sample_fn, rng=KEY)
  np.testing.assert_array_equal(state.h, [0, 0])


def test_an_objective_without_samples_is_refused():
  from lmjax import build

  class Bare:
    pass

  parts = registry.make_chain('optim', 'clip() | sophia_g()', facts={})
  with pytest.raises(build.ConfigError, match='sophia_g needs sampled labels'):
    build.chain({'objective': 'bare()'}, parts, Bare())
