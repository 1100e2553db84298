"""Replaced-token detection: places, labels, stopped gradients, what is shared and what is kept."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from _pair import MASK, ROWS, SMALL, T
from _pair import always, batch, edited, loss, made, mean, run, start
import _meshes
import _table
from lmjax import build
from lmjax import config
from lmjax import kinds
from lmjax.objectives import electra as electra_lib

pytestmark = pytest.mark.slow  # minutes of compiling


def test_no_opinion_costs_ln_2():
  p = edited(edited(start(), 'judge/out/kernel', 0.0), 'judge/out/bias', 0.0)
  out = loss(p, batch())
  assert mean(out, 'detection') == pytest.approx(math.log(2), rel=1e-5)
  want = mean(out, 'mlm') + 50 * math.log(2)
  assert float(out.sum / out.weight) == pytest.approx(want, rel=1e-5)
  assert float(out.weight) == ROWS * T and out.rows is None


def test_a_generator_that_is_right_makes_no_fakes():
  sure = edited(always(start(), 3), 'judge/out/bias', -50.0)  # that all is original
  right = loss(sure, batch(3))
  assert mean(right, 'fakes') == 0 and mean(right, 'mlm_accuracy') == 1
  assert mean(right, 'detection') < 1e-6 and mean(right, 'detection_accuracy') == 1
  wrong = loss(always(start(), 5), batch(3))
  assert mean(wrong, 'fakes') == pytest.approx(round(0.15 * T) / T) and mean(wrong, 'mlm') > 100


@pytest.mark.parametrize('lengths', [(32, 20, 10, 4, 1, 0, 32, 27)])
def test_places_are_a_share_of_each_row(lengths):
  objective, b = run().objective, batch(lengths=lengths)
  places, taken = objective.choose(b['tokens'], b['segments'], jax.random.key(0))
  want = [min(n, max(1, round(0.15 * n))) if n else 0 for n in lengths]
  assert np.asarray(taken.sum(1)).tolist() == want
  for row, (at, real) in enumerate(zip(np.asarray(places), np.asarray(taken))):
    assert len(set(at[real])) == real.sum() and (at[real] < lengths[row]).all()


def test_places_are_uniform_and_never_special():
  objective, b = run().objective, batch()
  tokens = b['tokens'].at[:, 4].set(MASK).at[:, 9].set(257)
  draw = jax.jit(jax.vmap(lambda key: objective.choose(tokens, b['segments'], key)[0]))
  places = np.asarray(draw(jax.random.split(jax.random.key(0), 500)))
  counts = np.bincount(places.reshape(-1), minlength=T)
  assert counts[4] == counts[9] == 0
  rest = np.delete(counts, [4, 9])
  assert abs(rest / rest.mean() - 1).max() < 0.17


def test_nothing_flows_from_the_detection_to_the_generator():
  """Both losses reach the embedding; the generator's own parameters see the first alone."""
  f = lambda weight: jax.grad(
    lambda p: (
      run(f'electra(weight={weight})').objective.loss(p, {}, batch(), jax.random.key(1), False).sum
    )
  )
  p = jax.tree.map(jnp.asarray, start())
  plain, both = (jax.jit(f(w))(p) for w in ('0.0', '50.0'))
  for name in ('generator', 'head', 'project'):
    for a, b in zip(jax.tree.leaves(plain[name]), jax.tree.leaves(both[name])):
      np.testing.assert_array_equal(a, b)
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(plain[name])) > 0
  for name in ('discriminator', 'judge'):
    assert not any(np.asarray(x).any() for x in jax.tree.leaves(plain[name]))
    assert any(np.asarray(x).any() for x in jax.tree.leaves(both[name]))
  slopes = [np.asarray(g['embed']['table']) for g in (plain, both)]
  assert np.abs(slopes[0]).max() > 0 and np.abs(slopes[1] - slopes[0]).max() > 0


def test_without_weight_it_is_masked_language_modelling():
  out = loss(start(), batch(), 'electra(weight=0.0)')
  assert float(out.sum / out.weight) == pytest.approx(mean(out, 'mlm'), rel=1e-5)
  assert mean(out, 'mlm') == pytest.approx(math.log(260), rel=0.1)


def test_what_each_network_sees(monkeypatch):
  seen, real = {}, electra_lib.Electra._run

  def spy(self, params, vars, rng, method, tokens, *rest, train):
    seen[method] = np.asarray(tokens)
    return real(self, params, vars, rng, method, tokens, *rest, train=train)

  b, trained = batch(3), run()  # building traces
  p = jax.tree.map(jnp.asarray, always(start(), 5))
  monkeypatch.setattr(electra_lib.Electra, '_run', spy)
  trained.objective.loss(p, {}, b, jax.random.key(4), False)
  k = round(0.15 * T)
  hidden, fake = seen['generate'] == MASK, seen['discriminate'] == 5
  assert (fake.sum(1) == k).all() and not (seen['discriminate'] == MASK).any()
  assert (hidden <= fake).all() and 0 < hidden.sum() < fake.sum(), 'some are left as they were'
  assert (seen['generate'][~hidden] == 3).all() and (seen['discriminate'][~fake] == 3).all()


def test_the_model_that_is_kept_is_an_ordinary_one():
  b = batch()
  plain = build.build(config.resolve(config.load('quickstart', [*SMALL, ('objective', 'mlm()')])))
  own, vars = run().network(start(), {})
  assert vars == {}
  shapes = lambda tree: {k: np.shape(v) for k, v in config.flat(tree).items()}
  assert shapes(own) == shapes(plain.state_shapes.params)
  ctx = kinds.Ctx(b['positions'], b['segments'])
  own, whole = (jax.tree.map(jnp.asarray, p) for p in (own, start()))
  hidden = run().architecture.apply({'params': own}, b['tokens'], ctx).hidden_BTD
  pair = run().objective.pair
  same = pair.apply({'params': whole}, b['tokens'], ctx, method=lambda m, t, c: m.discriminator(
    *(lambda x, _, c: (x, c))(*m.entered(t, c)))[0])  # fmt: skip
  np.testing.assert_allclose(hidden, same, atol=1e-5)


def test_variables_carry_facts_and_nothing_weighs_nothing():
  objective = run().objective
  _table.check_facts(jax.eval_shape(objective.init, jax.random.key(0), batch()))
  out = loss(start(), batch(lengths=(0,) * ROWS))
  assert float(out.sum) == 0 == float(out.weight)
  assert all(float(s) == 0 == float(w) for s, w in out.metrics.values())


def test_the_loss_of_a_batch_is_the_sum_over_its_rows(monkeypatch):
  """With draws that do not depend on the other rows."""
  first = lambda self, tokens, segments, rng: (
    jnp.broadcast_to(jnp.arange(5), (len(tokens), 5)),
    jnp.arange(5) < jnp.round(0.15 * (segments > 0).sum(1, keepdims=True)),
  )
  monkeypatch.setattr(electra_lib.Electra, 'choose', first)
  monkeypatch.setattr(electra_lib._common, 'gumbel_max', lambda z, rng: jnp.argmax(z, -1))
  objective = made('electra(mask=1.0)').objective
  p = jax.tree.map(jnp.asarray, start())
  f = jax.jit(lambda b: objective.loss(p, {}, b, jax.random.key(0), False))
  whole = batch(lengths=(32, 20, 10, 27, 0, 0, 0, 0))
  rows = [f(jax.tree.map(lambda a, i=i: a[i : i + 1], whole)) for i in range(4)]
  for pick in (lambda o: o.sum, lambda o: o.weight, lambda o: o.metrics['mlm'][0]):
    assert float(pick(f(whole))) == pytest.approx(sum(float(pick(r)) for r in rows), rel=1e-5)


def test_ablations():
  chance = loss(start('electra(generator=0)'), batch(), 'electra(generator=0)')
  assert 'generator' not in start('electra(generator=0)')
  assert mean(chance, 'fakes') == pytest.approx(round(0.15 * T) / T, abs=0.01)
  assert float(chance.sum / chance.weight) == pytest.approx(
    50 * mean(chance, 'detection'), rel=1e-5
  )
  places = loss(start(), batch(), 'electra(detect="places")')
  assert float(places.metrics['detection'][1]) == ROWS * round(0.15 * T)
  as_large = start('electra(generator=1)')
  assert 'project' not in as_large
  assert np.shape(as_large['generator']['final_norm']['scale']) == (32,)


HALF = 'electra(generator=0.5)'  # two heads, that two devices can share


@_meshes.each
def test_a_mesh_changes_neither_loss_nor_gradient(axes):
  given = run(HALF), start(HALF), {}, batch(lengths=(32, 20, 10, 4, 1, 0, 32, 27))
  _table.trees_close(_meshes.slope(*given, axes), _meshes.slope(*given), 2e-4)


@pytest.mark.parametrize(
  'spec, change, words',
  [
    ('electra(rate=0)', None, 'rate=0.0: above 0 and below 1'),
    ('electra(generator=2)', None, 'a share of the width from 0 to 1'),
    ('electra(generator=0.3)', None, 'a whole number is expected'),
    ('electra(generator=0.125)', None, 'does not divide by head_dim=8'),
    ('electra(temperature=0)', None, 'temperature=0.0: a positive number'),
    ('electra(weight=-1)', None, 'weight=-1.0'),
    ('electra()', ('data.tokenizer', 'bytes(specials=False)'), 'has no mask token'),
    ('electra()', ('model.embed', 'untied()'), 'which nothing would train'),
    ('electra()', ('model.mixer', 'gqa(head_dim=8)'), 'needs a mixer that looks both ways'),
  ],
)
def test_what_is_refused(spec, change, words):
  with pytest.raises(ValueError, match=words):
    made(spec, *([change] if change else []))
