"""Hutchinson's estimate: against a dense Hessian, in the mean over probes, on a mesh."""

import functools

import jax
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import jax.numpy as jnp
import numpy as np
import pytest

import _table
from lmjax import registry
from lmjax.kernels import attention as attention_lib
from lmjax.models.mixers import gqa
from lmjax.optim import sophia_h as module

KEY = jax.random.key(3)


def part(**args):
  return registry.get('optim', 'sophia_h').obj(**args)


def diagonal(params, obj_fn, key=KEY, **args):
  """h after one step that keeps nothing of the old one."""
  tx = part(b2=0.0, **args)
  seen = lambda p, one_in: obj_fn(p)
  return tx.update(params, tx.init(params), params, obj_fn=seen, rng=key)[1].h


def test_a_diagonal_hessian_is_exact_in_one_draw_of_signs():
  d = jnp.array([1.0, -2.0, 0.5, 0.0])
  f = lambda p: jnp.sum(d * p['a'] ** 2) / 2 + jnp.sum(p['b'] ** 3)
  p = dict(a=jnp.ones(4), b=jnp.array([2.0, -1.0]))
  h = diagonal(p, f, probe='rademacher')
  np.testing.assert_allclose(h['a'], d, rtol=1e-6)
  np.testing.assert_allclose(h['b'], 6 * p['b'], rtol=1e-6)
  normal = diagonal(p, f)
  assert not np.allclose(normal['a'][:3], d[:3], rtol=1e-2)


@pytest.mark.parametrize('probe, variance', [('normal', 2.0), ('rademacher', 0.0)])
def test_in_the_mean_it_is_the_diagonal(probe, variance):
  """Var u_i (H u)_i = `variance` H_ii^2 + sum over j != i of H_ij^2."""
  rng = np.random.default_rng(0)
  a = rng.standard_normal((5, 5))
  hessian = (a + a.T) / 2
  f = lambda p: p @ jnp.asarray(hessian, jnp.float32) @ p / 2
  keys = jax.random.split(KEY, 20_000)
  draws = jax.jit(jax.vmap(lambda k: diagonal(jnp.ones(5), f, k, probe=probe)))(keys)
  draws, d = np.asarray(draws, np.float64), np.diag(hessian)
  want = variance * d**2 + np.sum(hessian**2, axis=1) - d**2
  np.testing.assert_allclose(draws.mean(0), d, atol=5 * np.sqrt(want.max() / len(draws)))
  np.testing.assert_allclose(draws.var(0), want, rtol=0.1)


HOW = dict(
  width=8,
  depth=1,
  length=6,
  vocab=5,
  blocks__block__mixer='gqa(head_dim=4, kv_heads=1)',
  blocks__block__ffn='gelu(mult=1.0)',
)
SEGMENTS = np.array([[1, 1, 1, 2, 2, 2, 2], [1, 1, 1, 1, 0, 0, 0]])


def mean_loss(params):
  objective = registry.make('objective', 'clm()', model=_table.model(**HOW))()
  out = objective.loss(params, {}, _table.batch(SEGMENTS, vocab=5), KEY)
  return out.sum / out.weight


@pytest.mark.slow
def test_equals_the_dense_hessian_of_a_language_model(monkeypatch):
  """Reverse mode twice through attention's own backward pass, against forward over reverse through
  the plain attention.
  """
  params = _table.model_params(**HOW)['params']
  flat, unravel = ravel_pytree(params)
  got, _ = ravel_pytree(jax.jit(lambda p: diagonal(p, mean_loss))(params))
  u, _ = ravel_pytree(module._draws(jax.random.normal, KEY, params))

  plain = functools.partial(attention_lib.attention, implementation='reference')
  monkeypatch.setattr(gqa, 'attention', plain)
  hessian = np.asarray(jax.jit(jax.hessian(lambda x: mean_loss(unravel(x))))(flat), np.float64)
  u = np.asarray(u, np.float64)
  want = u * (hessian @ u)
  np.testing.assert_allclose(got, want, rtol=1e-3, atol=2e-5 * np.abs(want).max())
  assert np.min(np.diag(hessian)) < -1e-4, 'a case with negative curvature'


def test_probes_differ_between_tensors_coordinates_and_keys():
  p = dict(a=jnp.zeros(1000), b=jnp.zeros(1000))
  for draw in (jax.random.normal, jax.random.rademacher):
    one, two = (module._draws(draw, k, p) for k in jax.random.split(KEY))
    same = [one['a'], one['b'], two['a'], jnp.roll(one['a'], 1)]
    correlation = np.corrcoef(np.stack([np.asarray(x, np.float64) for x in same]))
    np.testing.assert_allclose(correlation, np.eye(4), atol=0.15)
    assert one['a'].dtype == jnp.float32
    np.testing.assert_allclose(np.var(np.asarray(one['a'], np.float64)), 1, atol=0.15)


@pytest.mark.parametrize('kind', [AxisType.Auto, AxisType.Explicit])
def test_normal_probes_do_not_depend_on_the_mesh(kind):
  p = {'w': jnp.asarray(np.random.default_rng(0).standard_normal((8, 4)), jnp.float32)}
  f = lambda p: jnp.sum(p['w'] ** 4) / 12
  want = jax.jit(lambda p: diagonal(p, f))(p)['w']
  mesh = jax.make_mesh((4, 2), ('data', 'tensor'), axis_types=(kind, kind))
  with jax.set_mesh(mesh):
    placed = jax.device_put(p, NamedSharding(mesh, P('data', 'tensor')))
    got = jax.jit(lambda p: diagonal(p, f))(placed)['w']
  np.testing.assert_allclose(got, want, rtol=1e-5)
