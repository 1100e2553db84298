"""Who gets which parameter, nested needs, and derivatives by a part of the parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import _table
from lmjax import build
from lmjax import registry
from lmjax import specs
from lmjax.parallel import facts as facts_lib
from lmjax.parallel.facts import Fact
from lmjax.registry import register

FACTS = {
  'w': Fact(('layers', 'embed', 'mlp'), ('embed',)),
  'o': Fact(('mlp', 'embed'), ('mlp',), 'residual'),
  'embed': Fact(('vocab', 'embed'), ('vocab',), 'embed'),
  'head': Fact(('vocab', 'embed'), ('embed',), 'unembed'),
  'place': Fact(('position', 'embed'), ('position',), 'position'),
  'gain': Fact(('layers', 'embed'), (), 'norm'),
  'bias': Fact(('mlp',), (), 'bias'),
  'vector': Fact(('embed',), ('embed',), 'hidden'),
  'bare': Fact((None, None), (), 'other'),
}
PARAMS = {k: jnp.full([2] * len(f.names), 3.0) for k, f in FACTS.items()}
INSIDE = ('w', 'o')


def make(spec):
  part = registry.make('optim', spec, facts=FACTS)
  return part, part()


def run(spec, g, **extra):
  _, tx = make(spec)
  u, state = tx.update(g, tx.init(PARAMS), PARAMS, **extra)
  return u, state


def test_matrices_inside_layers_against_the_rest():
  """Signs of Lion on one side, gradients on the other, multiplied."""
  g = jax.tree.map(lambda p: 4 * jnp.ones_like(p), PARAMS)
  u, _ = run('split(matrix=lion(), rest=sgd(), rest_lr=0.5)', g)
  for k in FACTS:
    np.testing.assert_array_equal(u[k], 1.0 if k in INSIDE else 2.0, err_msg=k)


def test_state_of_each_side_holds_its_own_parameters_only():
  _, state = run('split(matrix=sgd(momentum=0.9) | decay(), rest=adam())', PARAMS)
  held = lambda tree: {x.key for p, _ in jax.tree_util.tree_leaves_with_path(tree) for x in p[-1:]}
  assert set(state) == {'matrix', 'rest'} and set(state['matrix']) == {'sgd', 'decay'}
  assert held(state['matrix']['sgd'].trace) == set(INSIDE)
  assert held(state['rest'].mu) == set(FACTS) - set(INSIDE)


def test_a_side_clips_its_own_norm_and_decays_its_own_parameters():
  g = {k: jnp.ones_like(p) * (3 if k in INSIDE else 1e3) for k, p in PARAMS.items()}
  u, _ = run('split(matrix=clip(norm=1.0) | decay(rate=0.1), rest=sgd(), rest_lr=2.0)', g)
  n = sum(PARAMS[k].size for k in INSIDE)
  for k in FACTS:
    np.testing.assert_allclose(u[k], n**-0.5 + 0.3 if k in INSIDE else 2e3, rtol=1e-6)


def test_a_nested_part_differentiates_by_its_own_parameters():
  """The loss multiplies both sides, so that the curvature by one side is the square of the other,
  and asks for all parameters.
  """
  loss = lambda p, one_in=1: (
    sum(jnp.sum(p[k] ** 2) for k in p if k not in INSIDE)
    * sum(jnp.sum(p[k] ** 2) / 2 for k in INSIDE)
  )
  rest = float(sum(jnp.sum(p**2) for k, p in PARAMS.items() if k not in INSIDE))
  inside = float(sum(jnp.sum(PARAMS[k] ** 2) for k in INSIDE))
  _, state = run(
    'split(matrix=sophia_h(b2=0.0), rest=sophia_g(b2=0.0))',
    PARAMS,
    obj_fn=loss,
    sample_fn=lambda p, rng, one_in: (loss(p), jnp.float32(2.0)),
    rng=jax.random.key(0),
  )
  # u (H u) sums to u^T H u = rest |u|^2 here, since H is a multiple of the identity on this side
  from lmjax.optim import sophia_h

  mine = {k: PARAMS[k] if k in INSIDE else optax.MaskedNode() for k in PARAMS}
  u = sophia_h._draws(jax.random.normal, jax.random.key(0), mine)
  for k in INSIDE:
    np.testing.assert_allclose(state['matrix'].h[k], rest * u[k] ** 2, rtol=1e-5)
  for k in set(FACTS) - set(INSIDE):
    np.testing.assert_allclose(state['rest'].h[k], (inside * PARAMS[k]) ** 2 / 2, rtol=1e-5)


def test_needs_of_the_sides_are_its_own():
  class Bare:
    pass

  for spec, need in {
    'split(matrix=muon(), rest=adam())': (),
    'split(matrix=muon(), rest=clip() | sophia_g())': ('sample_fn', 'rng'),
    'split(matrix=split(matrix=sophia_h(), rest=sgd()))': ('obj_fn', 'rng'),
  }.items():
    assert make(spec)[0].fact('needs') == need
  parts = registry.make_chain('optim', 'split(matrix=sophia_g())', facts=FACTS)
  with pytest.raises(build.ConfigError, match='split needs sampled labels'):
    build.chain({'objective': 'bare()'}, parts, Bare())


@register('optim', owns_lr=True)
def own_rate():
  """A part that sets its own learning rate."""
  return optax.identity()


@pytest.mark.parametrize('argument', ['split.matrix', 'split.rest', 'scale.vectors'])
def test_both_sides_follow_the_schedule(argument):
  name, side = argument.split('.')
  mine = f'{__name__}:own_rate()'
  others = ', rest=sgd()' if side == 'matrix' else ', matrix=sgd()' if side == 'rest' else ''
  for inner in (mine, f'clip() | {mine}', 'schedule_free()'):
    with pytest.raises(ValueError, match=f'{argument}=.* a part that follows the schedule'):
      make(f'{name}({side}={inner}{others})')


def test_its_text_reads_back():
  spec = 'split(matrix=muon(scale="spectral") | decay(rate=0.01), rest=adam(b2=0.9), rest_lr=0.02)'
  part, _ = make(spec)
  again, _ = make(str(part))
  assert str(again) == str(part) and dict(again.args)['rest_lr'] == 0.02
  changed = specs.rewrite(spec, ['split', 'matrix', 'muon', 'steps'], 7)
  assert dict(dict(make(changed)[0].args)['matrix'].items()[0][1].args)['steps'] == 7


def test_on_a_transformer_the_tables_and_gains_go_to_the_rest():
  how = dict(width=8, depth=2, length=4, vocab=5, blocks__block__mixer='gqa(head_dim=4)')
  net = _table.model(embed='untied()', **how)
  tokens = jnp.zeros((1, 4), jnp.int32)
  boxed = _table.abstract(net, tokens, _table.ctx(1, 4))['params']
  facts, shapes = facts_lib.facts(boxed), facts_lib.unbox(boxed)
  tx = registry.make('optim', 'split(matrix=muon(), rest=lion())', facts=facts)()
  state = jax.eval_shape(tx.init, shapes)
  path = lambda tree: [
    '/'.join(k.key for k in p) for p, _ in jax.tree_util.tree_leaves_with_path(tree)
  ]
  rest = path(state['rest'].mu)
  assert all('embed' in p or 'norm' in p or p.endswith('bias') for p in rest) and rest
  assert not [p for p in path(state['matrix'].m) if 'embed' in p or 'norm' in p]
  assert len(path(state['matrix'].m)) >= 6
