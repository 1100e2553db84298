"""Low-rank matrices: the product itself, first values, refusals by name, and what facts make of the
factors: FLOPs, rates, decay, places on a mesh.
"""

import contextlib
import functools
import math

import jax
from jax.sharding import NamedSharding
import jax.numpy as jnp
import numpy as np
import pytest

import _meshes
import _table
from lmjax import build
from lmjax import config
from lmjax import flops
from lmjax import registry
from lmjax.parallel import facts as facts_lib
from lmjax.parallel import mesh as mesh_lib
from lmjax.parallel import shard

WIDTH = 32
SETTINGS = (
  ('model.width', str(WIDTH)),
  ('model.depth', '2'),
  ('model.linear', 'low_rank(rank=4)'),
  ('model.mixer', 'gqa(head_dim=8, kv_heads=2)'),
  ('model.ffn', 'swiglu(hidden=48, bias=True)'),
  ('data.length', '16'),
  ('batch_tokens', '128'),
  ('schedule', 'constant()'),
  ('peak_lr', '0.01'),
)


@functools.cache
def run(*changes):
  return build.build(config.resolve(config.load('quickstart', [*SETTINGS, *changes])))


def module(init='gpt2()', rank=4, alpha=32.0, role='hidden', ins=(('embed', 96),)):
  outs = (('heads', 8), ('head_dim', 10))
  return registry.make('linear', f'low_rank(rank={rank}, alpha={alpha})')(
    ins=ins, outs=outs, role=role, scheme=_table.scheme(init), bias=False, parent=None
  )


def first(**how):
  x = jnp.zeros((1, 1, *(n for _, n in how.get('ins', (('embed', 96),)))))
  return facts_lib.unbox(module(**how).init(jax.random.key(0), x))['params']


@pytest.mark.parametrize('rank, alpha', [(4, 32.0), (2, 1.0)])
def test_is_alpha_over_rank_times_the_product(rank, alpha):
  params = first(rank=rank, alpha=alpha)
  assert {k: v.shape for k, v in params.items()} == dict(down=(96, rank), up=(rank, 8, 10))
  x = _table.normal(2, 3, 96)
  got = module(rank=rank, alpha=alpha).apply({'params': params}, x)
  a, b = np.float64(params['down']), np.float64(params['up']).reshape(rank, 80)
  _table.close(got, (alpha / rank * np.float64(x) @ a @ b).reshape(2, 3, 8, 10), 1e-5)


@pytest.mark.parametrize('init', ['gpt2()', 'mup(base_width=8)', 'fan_in(gain=9.0)'])
@pytest.mark.parametrize('role', ['hidden', 'residual'])
def test_both_factors_start_uniform_by_their_own_inputs(init, role):
  """A wrong fan, as that of the whole matrix for `up`, shows in the bound."""
  ins = (('heads', 16), ('head_dim', 25))
  params = first(init=init, role=role, rank=40, ins=ins)
  for name, fan_in in dict(down=400, up=40).items():
    x = np.asarray(params[name])
    assert 0.99 * fan_in**-0.5 < np.abs(x).max() <= fan_in**-0.5, name
    assert abs(x.std() * math.sqrt(3 * fan_in) - 1) < 0.03 and abs(x.mean()) < 0.05 * x.std()


def test_a_rank_that_saves_nothing_is_refused_by_the_name_of_the_matrix():
  said = r'config\.model\.linear: low_rank\.rank=16 is not accepted: .* expected, and .*{} is {}'
  with pytest.raises(ValueError, match=said.format('mixer/k', '32 x 16')):
    run(('model.linear', 'low_rank(rank=16)'))
  run(('model.linear', 'low_rank(rank=15)'))
  with pytest.raises(ValueError, match=r'low_rank: rank=0: a positive number is expected'):
    registry.make('linear', 'low_rank(rank=0)')
  with pytest.raises(ValueError, match=r'low_rank: alpha=-1.0: a positive number is expected'):
    registry.make('linear', 'low_rank(rank=2, alpha=-1.0)')
  with pytest.raises(ValueError, match="low_rank needs the argument 'rank'"):
    registry.make('linear', 'low_rank()')


def test_flops_and_parameters_are_those_of_the_factors():
  """q and out 32 x 32, k and v 32 x 16, three matrices 32 x 48: rank x (in + out) each."""
  sides = 2 * 64 + 2 * 48 + 3 * 80
  head = 260 * WIDTH
  assert flops.per_token(run()).matrices == 2 * (2 * 4 * sides + head)
  layers = [math.prod(s) for k, f, s in leaves() if f.is_matrix and k[0].startswith('segment')]
  assert sum(layers) == 2 * 4 * sides


def leaves(*changes):
  made = run(*changes)
  return list(facts_lib.items(made.facts['params'], made.shapes['params']))


@pytest.mark.slow
def test_rates_and_decay_treat_each_factor_as_a_matrix():
  made = run(('model.init', 'mup(base_width=8)'), ('optim', 'decay(rate=1.0)'))
  state = made.init(jax.random.key(0))
  zero = jax.tree.map(jnp.zeros_like, state.params)
  updates, _ = made.tx.update(zero, state.opt, state.params)
  seen = set()
  for (keys, fact, _), rate, u in zip(
    leaves(('model.init', 'mup(base_width=8)'), ('optim', 'decay(rate=1.0)')),
    jax.tree.leaves(made.lr_factors),
    jax.tree.leaves(updates),
  ):
    if 'rank' in fact.names:
      seen.add(keys[-1])
      assert rate == 1 / 4 and np.any(u != 0), keys
    assert fact.role != 'bias' or not np.any(u), keys
  assert seen == {'down', 'up'}


MESHES = {
  'auto': _meshes.settings(data=4, tensor=2),
  'explicit': _meshes.settings('explicit', data=4, tensor=2),
}


OPTIM = ('optim', 'adam() | refactor(every=2)')


@functools.cache
def first_state():
  return jax.tree.map(np.asarray, run(OPTIM).init(jax.random.key(0)))


def steps(mesh):
  """(losses, last state) of three steps."""
  made, state = run(OPTIM), first_state()
  batch = jax.tree.map(lambda s: np.ones(s.shape, s.dtype), made.batch_shapes())
  batch['tokens'] = np.random.default_rng(0).integers(0, 256, batch['tokens'].shape, np.int32)
  batch['positions'] += np.arange(17, dtype=np.int32) - 1
  with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
    out = None
    if mesh is not None:
      state = jax.device_put(state, shardings := made.shardings())
      batch = jax.device_put(batch, NamedSharding(mesh, shard.spec(('batch', None))))
      out = shardings, None
    step, losses = jax.jit(made.step, out_shardings=out), []
    for _ in range(3):
      state, metrics = step(state, batch, jax.random.key(1))
      losses.append(float(metrics['loss'][0] / metrics['loss'][1]))
  return losses, state


@functools.cache
def alone():
  return steps(None)


@pytest.mark.slow
@pytest.mark.parametrize('name', MESHES)
def test_a_mesh_does_not_change_the_training_and_factors_lie_like_matrices(name):
  alone()  # built and started outside the mesh, as a run is
  mesh = mesh_lib.make(MESHES[name])
  losses, state = steps(mesh)
  np.testing.assert_allclose(losses, alone()[0], rtol=2e-5)
  assert losses[-1] < losses[0]
  for tree in (state.params, state.opt['adam'].mu):
    pieces = jax.tree.map(
      lambda x: x.addressable_shards[0].data.shape, tree['segment_0']['0_block']['mixer']
    )
    assert pieces['q'] == dict(down=(2, WIDTH // 4, 4), up=(2, 4, 2, 8))
    assert pieces['out'] == dict(down=(2, 2, 8, 4), up=(2, 4, WIDTH // 4))
