"""Losses on labels that the model draws itself."""

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
import numpy as np
import pytest

import _table
from lmjax import kinds
from lmjax import registry
from lmjax.nn import embedding
from lmjax.objectives import _common
from lmjax.parallel import facts as facts_lib
from lmjax.parallel import shard

KEY = jax.random.key(0)
HOW = dict(width=16, depth=1, length=6, vocab=5, blocks__block__mixer='gqa(head_dim=8)')
SEGMENTS = np.array([[1, 1, 1, 2, 2, 2, 2], [1, 1, 1, 1, 0, 0, 0]])  # 5 + 3 predicted tokens


def case(spec='clm()', **more):
  """(objective, parameters, batch)."""
  how = HOW | more
  objective = registry.make('objective', spec, model=_table.model(**how))()
  params = dict(_table.model_params(**how)['params'])
  params['embed'] = jax.tree.map(lambda x: 0.3 * x, params['embed'])  # a model that doubts
  return objective, params, _table.batch(SEGMENTS, vocab=5)


def seen(objective, params, batch):
  """(logits, the labels that `sample` draws with KEY), without dropout."""
  ctx = kinds.Ctx(batch['positions'][:, :-1], batch['segments'][:, :-1])

  @jax.jit
  def run(params):
    out = objective.model.apply({'params': params}, batch['tokens'][:, :-1], ctx)
    return embedding.logits(out), _common.draw(out, jax.random.split(KEY)[1])

  return run(params)


def outputs(hidden_BTD, unembed_VD, bias_V=None, scale=1.0, cap=None):
  return kinds.Outputs(hidden_BTD, unembed_VD, bias_V, scale, cap, None, {})


def test_draws_follow_the_models_probabilities_independently_at_each_place():
  rng = np.random.default_rng(0)
  hidden = jnp.asarray(rng.standard_normal((1, 2, 3)), jnp.float32).repeat(20_000, axis=0)
  out = outputs(hidden, jnp.asarray(rng.standard_normal((4, 3)), jnp.float32), scale=2.0, cap=1.5)
  labels = np.asarray(jax.jit(lambda k: _common.draw(out, k))(KEY))
  assert labels.shape == (20_000, 2) and labels.dtype == np.int32
  want = np.asarray(jax.nn.softmax(embedding.logits(out)[0]), np.float64)
  counts = np.zeros((4, 4))
  np.add.at(counts, (labels[:, 0], labels[:, 1]), 1)
  np.testing.assert_allclose(counts / len(labels), np.outer(*want), atol=0.015)


def test_rows_that_round_the_vocabulary_up_are_never_drawn():
  bias = embedding.never(3, 8)
  out = outputs(jnp.zeros((100, 50, 2)), jnp.zeros((8, 2)), bias)
  assert set(np.unique(_common.draw(out, KEY))) == {0, 1, 2}


@pytest.mark.parametrize('spec', ['clm()', 'clm(z_loss=0.5, label_smoothing=0.3)'])
def test_the_sum_is_the_plain_cross_entropy_of_the_drawn_labels(spec):
  """Over the predicted places only, whatever the objective adds; no dropout here, so that the
  logits are known.
  """
  objective, params, batch = case(spec)
  sample = jax.jit(lambda k: objective.sample(params, {}, batch, k))
  loss = sample(KEY)
  logits, labels = seen(objective, params, batch)
  logp = np.asarray(jax.nn.log_softmax(logits), np.float64)
  nll = -np.take_along_axis(logp, np.asarray(labels)[..., None], -1)[..., 0]
  w = np.asarray(objective.weights(batch))
  assert float(loss.weight) == w.sum() == 8
  assert float(loss.sum) == pytest.approx(np.sum(nll * w), rel=1e-5) and float(loss.sum) > 3
  np.testing.assert_allclose(loss.rows[0], np.sum(nll * w, -1), rtol=1e-5)
  np.testing.assert_array_equal(loss.rows[1], [5, 3])
  assert float(sample(jax.random.key(1)).sum) != float(loss.sum), 'another key draws other labels'


def test_real_targets_are_not_looked_at():
  """The last token of each row and those behind a document's end are targets only."""
  objective, params, batch = case()
  sample = jax.jit(lambda b: objective.sample(params, {}, b, KEY).sum)
  last = dict(batch, tokens=batch['tokens'].at[:, -1].add(1) % 5)
  _table.same(sample(last), sample(batch))
  first = dict(batch, tokens=batch['tokens'].at[0, 0].add(1) % 5)
  assert float(sample(first)) != float(sample(batch)), 'inputs are the real tokens'


def test_draws_are_constants_of_the_derivative():
  objective, params, batch = case()
  ctx = kinds.Ctx(batch['positions'][:, :-1], batch['segments'][:, :-1])

  def fixed(p, labels):
    out = objective.model.apply({'params': p}, batch['tokens'][:, :-1], ctx)
    return _common.cross_entropy(out, labels, objective.weights(batch))[0]

  _, labels = seen(objective, params, batch)
  got = jax.jit(jax.grad(lambda p: objective.sample(p, {}, batch, KEY).sum))(params)
  _table.trees_close(got, jax.jit(jax.grad(fixed))(params, labels), 1e-5)


def test_it_trains_with_dropout_like_the_loss():
  objective, params, batch = case(dropout=0.5)
  plain = case()[0]
  run = lambda o: jax.jit(lambda k: o.sample(params, {}, batch, k))(KEY)
  runs = [run(o) for o in (objective, plain)]
  assert float(runs[0].sum) != float(runs[1].sum)


@pytest.mark.parametrize('kind', [AxisType.Auto, AxisType.Explicit])
def test_draws_do_not_depend_on_the_mesh(kind):
  objective, params, batch = case(vocab=6)
  want = jax.jit(lambda p, b: objective.sample(p, {}, b, KEY))(params, batch)
  mesh = jax.make_mesh((2, 2), ('data', 'tensor'), axis_types=(kind, kind))
  boxed = jax.eval_shape(objective.init, KEY, batch)['params']
  names = jax.tree.map(lambda f: f.names, facts_lib.facts(boxed), is_leaf=facts_lib.is_fact)
  with jax.set_mesh(mesh):
    place = lambda x, n: jax.device_put(x, jax.NamedSharding(mesh, shard.spec(n)))
    p = jax.tree.map(place, params, names)
    b = {k: place(x, ('batch', None)) for k, x in batch.items()}
    got = jax.jit(lambda p, b: objective.sample(p, {}, b, KEY))(p, b)
  np.testing.assert_allclose(got.sum, want.sum, rtol=1e-5)
