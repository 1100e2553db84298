"""Sub-models: which layers run, which parameters a draw trains, what is refused."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

import _table
from lmjax import build
from lmjax import config
from lmjax import registry
from lmjax import specs
from lmjax.objectives import clm
from lmjax.objectives import sub_models

pytestmark = pytest.mark.slow  # minutes of compiling

DEPTH, EVERY = 4, 2
HOW = dict(length=8, depth=DEPTH, embed='untied()', position='learned()', embed_norm='layer_norm()')
SEGMENTS = np.array([[1, 1, 1, 2, 2, 2, 2, 2, 2], [1, 1, 1, 1, 1, 0, 0, 0, 0]])


def make(spec='sub_models(every=2)', **how):
  net = _table.model(**{**HOW, **how})
  return registry.make('objective', spec, model=net, tokenizer=_table.Tokenizer())()


def params(**how):
  return _table.model_params(**{**HOW, **how})['params']


@functools.cache
def compiled(**how):
  objective = make(**how)

  def of(p, key):
    out = objective.loss(p, {}, _table.batch(SEGMENTS), key)
    return out.sum, out.metrics

  return jax.jit(jax.value_and_grad(of, has_aux=True))


def drawn(layers: int, **how):
  """(loss, gradient) of the first draw of so many layers."""
  for seed in range(40):
    (loss, metrics), grad = compiled(**how)(params(**how), jax.random.key(seed))
    total, weight = metrics['layers']
    if round(float(total / weight)) == layers:
      return float(loss), grad
  raise AssertionError(f'no draw of {layers} layers in 40')


@pytest.mark.parametrize('layers', [2, 4])
def test_the_loss_is_that_of_the_first_layers_under_the_same_head(layers):
  whole = _table.model(**HOW)
  first = (specs.Segment(whole.model.segments[0].pattern, layers),)
  net = whole.clone(model=dataclasses.replace(whole.model, segments=first))
  cut = {**params(), 'segment_0': jax.tree.map(lambda a: a[:layers], params()['segment_0'])}
  want = clm.Clm(net).loss(cut, {}, _table.batch(SEGMENTS), jax.random.key(0))
  assert drawn(layers)[0] == pytest.approx(float(want.sum), rel=1e-5)


@pytest.mark.parametrize('layers', [2, 4])
def test_only_the_top_layers_and_the_head_get_gradients(layers):
  """All of them equal those of the sub-model itself, everything else is 0 to the bit."""
  grad = drawn(layers)[1]
  trained = slice(layers - EVERY, layers)
  for path, g in jax.tree_util.tree_leaves_with_path(grad['segment_0']):
    rest = np.delete(np.asarray(g), np.arange(DEPTH)[trained], axis=0)
    assert not rest.any(), path
    assert all(np.any(row) for row in np.asarray(g)[trained]), path
  head = {'final_norm': grad['final_norm'], 'unembed': grad['embed'].pop('unembed')}
  assert all(np.any(np.asarray(g)) for g in jax.tree.leaves(head))
  below = [grad['embed'], grad['position'], grad['embed_norm']]
  assert not any(np.any(np.asarray(g)) for g in jax.tree.leaves(below))


def test_a_tied_table_is_trained_as_the_head_alone():
  """Its gradient is that of a matrix of its own."""
  tied = dict(embed='tied()')
  loss, got = drawn(2, **tied)
  table = params(**tied)['embed']['table']
  p = {**params(**tied), 'embed': {'table': table, 'unembed': table}}
  for seed in range(40):
    (other, metrics), want = compiled()(p, jax.random.key(seed))
    if round(float(metrics['layers'][0] / metrics['layers'][1])) == 2:
      break
  assert float(other) == pytest.approx(loss, rel=1e-6)
  _table.close(got['embed']['table'], want['embed']['unembed'])


def test_draws_are_uniform_and_validation_sees_all_layers():
  objective, key = make(), jax.random.key(1)
  run = lambda p, key: objective.loss(p, {}, _table.batch(SEGMENTS), key).metrics['layers']
  total, weight = jax.jit(jax.vmap(run, (None, 0)))(params(), jax.random.split(key, 200))
  layers = np.round(np.asarray(total / weight)).astype(int)
  assert set(layers) == {2, 4}
  assert abs(np.mean(layers == 2) - 0.5) < 0.15, 'four standard deviations of 200 draws'
  score = lambda key: objective.loss(params(), {}, _table.batch(SEGMENTS), key, False).sum
  seen = jax.jit(jax.vmap(score))(jax.random.split(key, 8))  # were it drawn, some would be shallow
  want = clm.Clm(_table.model(**HOW)).loss(params(), {}, _table.batch(SEGMENTS), key, False)
  np.testing.assert_allclose(seen, float(want.sum), rtol=1e-6)


def test_the_backward_pass_ends_with_what_is_trained():
  """One scan goes backward, that of the top layers, whatever lies below."""

  def backward(sub):
    inner, below, step = sub
    cut = lambda p: sub_models.cut(p, below, step)
    run = lambda p: inner.loss(cut(p), {}, _table.batch(SEGMENTS), jax.random.key(0)).sum
    return str(jax.make_jaxpr(jax.grad(run))(params())).count('reverse=True')

  assert [backward(sub) for sub in make().subs] == [1, 1]


@pytest.mark.parametrize(
  'spec, how, words',
  [
    ('sub_models(every=3)', {}, 'every=3 does not divide the 4 layers'),
    ('sub_models(every=0)', {}, 'every=0: a positive number'),
    ('sub_models(inner=electra())', {}, 'an objective of one network'),
    ('sub_models(every=2)', dict(stack='block*2 + block*2'), 'one segment of layers'),
    ('sub_models(every=2)', dict(stack='shared(block)*4'), 'one segment of layers'),
    ('sub_models(every=1)', dict(stack='(block, block)*2'), 'in groups of 2'),
    ('sub_models(every=2)', dict(blocks__block__norm='power_norm()'), 'running statistics'),
  ],
)
def test_what_is_refused(spec, how, words):
  with pytest.raises(ValueError, match=words):
    jax.eval_shape(make(spec, **how).init, jax.random.key(0), _table.batch(SEGMENTS))


def test_facts_are_those_of_the_inner_objective():
  part = registry.make('objective', 'sub_models(inner=mlm())')
  assert part.fact('causal') is False and part.fact('lookahead') == 0
  assert part.fact('couples') == 'micro'
  assert registry.make('objective', 'sub_models()').fact('lookahead') == 1


def test_a_config_with_micro_batches_builds_and_reports_the_layers():
  changes = [('model.width', '16'), ('model.depth', '2'), ('model.mixer.head_dim', '8')]
  changes += [('data.length', '8'), ('batch_tokens', '32'), ('micro_batches', '2')]
  changes += [('objective', 'sub_models(every=1)')]
  run = build.build(config.resolve(config.load('quickstart', changes)))
  args = run.state_shapes, run.batch_shapes(), jax.random.key(0)
  assert 'layers' in jax.eval_shape(run.step, *args)[1]
