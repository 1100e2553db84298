"""A table narrower than the model: equal to a table of the full width, what is counted, refusals,
meshes.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import _meshes
import _table
from lmjax import build
from lmjax import config
from lmjax import flops
from lmjax import registry
from lmjax.nn import embedding
from lmjax.parallel import facts as facts_lib

V, D, E, T = 264, 32, 8, 16
SMALL = (
  ('model.width', str(D)),
  ('model.depth', '1'),
  ('data.length', str(T)),
  ('batch_tokens', str(8 * T)),
  ('model.mixer', 'gqa(head_dim=8)'),
)
NARROW = f'factorized(size={E}, multiple_of=8'


def made(embed, *changes):
  found = [*SMALL, ('model.embed', embed), *changes]
  return build.build(config.resolve(config.load('quickstart', found)))


def test_it_is_tied_with_the_product_of_both_factors():
  how = dict(depth=1, embed='factorized(size=4)')
  net, params = _table.model(**how), dict(_table.model_params(**how)['params'])
  own, full = params['embed'], _table.model(depth=1, embed='tied()')
  wide = params | {'embed': {'table': own['table'] @ own['project']}}
  tokens, ctx = _table.batch(np.ones((2, 10), int))['tokens'], _table.ctx()
  logits = lambda net, p: embedding.logits(net.apply({'params': p}, tokens, ctx))
  _table.close(logits(net, params), logits(full, wide), 1e-5)


def test_positions_and_norm_stand_in_front_of_the_projection():
  spec = f'{NARROW}, position=learned(), norm=layer_norm())'
  shapes = made(spec, ('model.position', 'none()')).shapes['params']['embed']
  found = {k: v.shape for k, v in config.flat(shapes).items()}
  assert found == {
    'table': (V, E),
    'position.table': (T, E),
    'norm.scale': (E,),
    'norm.bias': (E,),
    'project': (E, D),
  }


def test_parameters_and_flops_by_hand():
  run = made(f'{NARROW})')
  assert build.counts(run)['embed'] == V * E + E * D
  assert flops.per_token(run).matrices == 2 * (12 * D * D + E * D + V * D), 'E P is multiplied out'
  assert flops.per_token(made('tied(multiple_of=8)')).matrices == 2 * (12 * D * D + V * D)


@pytest.mark.parametrize('init', ['gpt2()', 'mup(base_width=8)', 'fan_in()'])
def test_the_product_begins_like_a_full_table(init):
  part = registry.make('embed', 'factorized()', vocab=400, width=256, dtype=jnp.float32, length=4)
  tokens, ctx = jnp.zeros((1, 4), jnp.int32), _table.ctx(1, 4, init=init)
  boxed = part(parent=None).init(jax.random.key(0), tokens, ctx)
  _, unembed, _ = part(parent=None).apply(facts_lib.unbox(boxed), tokens, ctx)
  np.testing.assert_allclose(np.std(unembed), 0.02, rtol=0.05)
  rates = [ctx.scheme.init.lr(b.fact, b.value.shape) for b in boxed['params'].values()]
  assert rates == [1, 1], 'neither is a matrix of two widths'


@pytest.mark.slow
@_meshes.each
def test_a_mesh_changes_neither_loss_nor_gradient(axes):
  run = made(f'{NARROW}, position=learned(), norm=layer_norm())', ('model.position', 'none()'))
  params = jax.tree.map(np.asarray, run.init(jax.random.key(0)).params)
  rows = np.random.default_rng(0).integers(0, 256, (8, T + 1)).astype(np.int32)
  place = np.broadcast_to(np.arange(T + 1, dtype=np.int32), rows.shape)
  given = run, params, {}, dict(tokens=rows, segments=np.ones_like(rows), positions=place)
  _table.trees_close(_meshes.slope(*given, axes), _meshes.slope(*given), 2e-4)


@pytest.mark.parametrize(
  'spec, words',
  [
    ('factorized(size=0)', 'size=0: a positive number'),
    ('factorized(size=32)', 'size=32 is not below config.model.width=32'),
    ('factorized(size=8, position=rope())', 'one that is added to vectors'),
    ('factorized(size=8, length=3)', 'is set by the config around it'),
    ('factorized(size=8, norm=learned())', 'no norm named'),
  ],
)
def test_what_is_refused(spec, words):
  with pytest.raises(ValueError, match=words):
    made(spec)
