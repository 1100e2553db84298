"""Variants of replaced-token detection: narrow tables, what is shared, prediction in place of
detection, the adversarial generator.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from _pair import NARROW, ROWS, SMALL, T
from _pair import batch, edited, loss, made, mean, run, slope, start
import _meshes
import _table
from lmjax import build
from lmjax import config
from lmjax import flops
from lmjax import kinds

pytestmark = pytest.mark.slow  # minutes of compiling

V, E, D, N = 264, 16, 32, 8
K = round(0.15 * T)
SAME, OWN = 'electra(generator=1, share="all")', 'electra(generator=1, share="none")'


def largest(tree):
  return max(float(np.abs(x).max()) for x in jax.tree.leaves(tree))


def same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


# ---- a table narrower than the model


def test_parameters_of_a_narrow_table_by_hand():
  counts = build.counts(run('electra()', *NARROW))
  table = (V + T + 2) * E  # tokens, positions, norm
  assert counts['embed'] == table + E * D and counts['project'] == E * N
  layer = lambda d: 12 * d * d + 3 * d
  assert counts['discriminator'] == layer(D) and counts['generator'] == layer(N)
  assert counts['head'] == N * E + E + 2 * E + V
  assert counts['judge'] == D * D + D + D + 1
  shapes = jax.tree.leaves(run('electra()', *NARROW).shapes['params'])
  assert sum(V in a.shape and a.ndim > 1 for a in shapes) == 1, 'one table'


def test_both_losses_reach_what_is_shared_and_each_its_own_projection():
  p = start('electra()', *NARROW)
  (_, plain), (_, both) = (slope(p, f'electra(weight={w})', NARROW) for w in (0.0, 50.0))
  for name in ('table', 'position', 'norm'):
    own = [g['embed'][name] for g in (plain, both)]
    assert largest(own[0]) > 0 and largest(jax.tree.map(np.subtract, *own)) > 0, name
  assert largest(plain['embed']['project']) == 0 < largest(both['embed']['project'])
  for name in ('project', 'generator', 'head'):
    same(plain[name], both[name])
    assert largest(plain[name]) > 0


def test_the_model_with_a_narrow_table_that_is_kept_is_an_ordinary_one():
  b, p = batch(), start('electra()', *NARROW)
  changes = [*SMALL, ('objective', 'mlm()'), *NARROW]
  plain = build.build(config.resolve(config.load('quickstart', changes)))
  own, _ = run('electra()', *NARROW).network(p, {})
  shapes = lambda tree: {k: np.shape(v) for k, v in config.flat(tree).items()}
  assert shapes(own) == shapes(plain.state_shapes.params)
  ctx = kinds.Ctx(b['positions'], b['segments'])
  own, whole = (jax.tree.map(jnp.asarray, tree) for tree in (own, p))
  hidden = plain.architecture.apply({'params': own}, b['tokens'], ctx).hidden_BTD
  method = lambda m, t, c: m.discriminator(*(lambda x, _, c: (x, c))(*m.entered(t, c)))[0]
  pair = run('electra()', *NARROW).objective.pair
  found = pair.apply({'params': whole}, b['tokens'], ctx, method=method)
  np.testing.assert_allclose(hidden, found, atol=1e-5)


def test_flops_by_hand():
  """The generator runs over all tokens, what reads its states at the places alone."""
  narrow, wide = flops.per_token(run('electra()', *NARROW)), flops.per_token(run())
  layers = 12 * D * D + 12 * N * N + D * D + D  # both stacks, and what judges
  table = (N * E + V * E) * K / T
  assert narrow.matrices == 2 * (layers + E * D + E * N + table)
  assert wide.matrices == 2 * (layers + D * N + (N * D + V * D) * K / T)
  assert narrow.mixing_full == wide.mixing_full == 4 * (D + N) * T
  twice = flops.per_token(run(SAME, *NARROW))
  assert twice.matrices == pytest.approx(
    2 * (2 * (12 * D * D + E * D) + D * D + D + (D * E + V * E) * K / T)
  )
  reads = flops.per_token(run('electra(predict="all")', *NARROW))
  assert reads.matrices - narrow.matrices == pytest.approx(2 * (D * E + V * E))
  apart = flops.per_token(run('electra(share="none")', *NARROW))
  assert apart.matrices == pytest.approx(narrow.matrices)


# ---- what is shared


@pytest.mark.parametrize('changes', [(), NARROW], ids=['wide', 'narrow'])
def test_one_set_of_layers_is_two_equal_ones(changes):
  one, two = start(SAME, *changes), start('electra(generator=1)', *changes)
  assert 'generator' not in one and not {'project', 'generator_in'} & set(one)
  equal = {**one, 'generator': one['discriminator']}
  if changes:  # there each network has a projection of its own, of one shape here
    equal['project'] = {'in': {'kernel': one['embed']['project']}}
  assert set(equal) == set(two)
  found, grad = slope(one, SAME, changes)
  want, apart = slope(equal, 'electra(generator=1)', changes)
  assert found == pytest.approx(want, rel=1e-5)
  both = jax.tree.map(np.add, apart['discriminator'], apart['generator'])
  _table.trees_close(grad['discriminator'], both, 1e-4)
  assert largest(apart['generator']) > 0
  if changes:
    project = apart['embed']['project'] + apart['project']['in']['kernel']
    _table.close(grad['embed']['project'], project, 1e-4)


def test_embeddings_of_its_own_are_a_copy_of_those_that_are_shared():
  shared = start('electra()')
  entrance = {k: shared[k] for k in ('embed', 'position', 'embed_norm')}
  assert set(start('electra(share="none")')) == {*shared, 'generator_in'}
  want, together = slope(shared)
  found, apart = slope({**shared, 'generator_in': entrance}, 'electra(share="none")')
  assert found == pytest.approx(want, rel=1e-6)
  for k in entrance:
    both = jax.tree.map(np.add, apart[k], apart['generator_in'][k])
    _table.trees_close(both, together[k], 1e-4)


def test_detection_leaves_a_generator_with_its_own_embeddings_alone():
  p = start(OWN)
  _, plain = slope(p, 'electra(generator=1, share="none", weight=0)')
  _, both = slope(p, OWN)
  for name in plain:
    if name in ('generator', 'generator_in', 'head'):
      same(plain[name], both[name])
      assert largest(plain[name]) > 0
    else:
      assert largest(plain[name]) == 0 < largest(both[name]), name


# ---- prediction


def test_predictions_that_know_nothing():
  """All logits 0: log V at the places; for all tokens, with D = 1/2, by what was copied."""
  p = start('electra(predict="places")')
  assert 'judge' not in p
  out = loss(edited(p, 'embed/table', 0.0), batch(), 'electra(predict="places")')
  assert mean(out, 'prediction') == pytest.approx(math.log(260), rel=1e-5)
  assert float(out.metrics['prediction'][1]) == ROWS * K
  assert float(out.sum / out.weight) == pytest.approx(51 * math.log(260), rel=1e-5)
  spec = 'electra(predict="all", weight=1)'
  p = edited(start(spec), 'embed/table', 0.0)
  for name in ('kernel', 'bias'):
    p = edited(p, f'judge/out/{name}', 0.0)
  out = loss(p, batch(), spec)
  fakes = mean(out, 'fakes')
  kept = -math.log(0.5 + 0.5 / 260)
  want = fakes * math.log(2 * 260) + (1 - fakes) * kept
  assert 0 < fakes <= K / T and float(out.metrics['prediction'][1]) == ROWS * T
  assert mean(out, 'prediction') == pytest.approx(want, rel=1e-5)
  assert float(out.sum / out.weight) == pytest.approx(want + math.log(260), rel=1e-5)
  assert mean(out, 'prediction_accuracy') == pytest.approx(1 - fakes, abs=1e-6)


def test_a_prediction_of_uniform_fakes():
  """Without a generator, of which nothing is left."""
  spec = 'electra(generator=0, predict="places")'
  out = loss(start(spec), batch(), spec)
  assert float(out.sum / out.weight) == pytest.approx(50 * mean(out, 'prediction'), rel=1e-5)
  assert mean(out, 'mlm') == 0 and 'head' not in start(spec)


@pytest.mark.parametrize('predict', ['places', 'all'])
def test_nothing_flows_from_the_prediction_to_the_generator(predict):
  specs = [f'electra(predict="{predict}", weight={w})' for w in (0.0, 1.0)]
  p = start(specs[1])
  (alone, plain), (_, both) = (slope(p, s) for s in specs)
  out = loss(p, batch(), specs[0])
  assert float(alone) == pytest.approx(ROWS * T * mean(out, 'mlm'), rel=1e-5)
  for name in ('generator', 'head', 'project'):
    same(plain[name], both[name])
  for name in {'discriminator', 'reader', 'judge'} & set(p):
    assert largest(plain[name]) == 0 < largest(both[name]), name


# ---- adversarial


def test_a_reward_that_was_foreseen_moves_nothing():
  """Both say 1/2: R = b = ln 2."""
  spec = 'electra(adversarial=True)'
  p = start(spec)
  for path in ('judge/out/kernel', 'judge/out/bias', 'critic/out/kernel'):
    p = edited(p, path, 0.0)
  out = loss(p, batch(), spec)
  assert mean(out, 'reward') == pytest.approx(math.log(2), rel=1e-6)
  _, grad = slope(p, spec)
  for name in ('generator', 'head', 'project'):
    assert largest(grad[name]) == 0
  assert largest(grad['critic']) < 1e-3 and largest(grad['judge']) > 0


def test_the_critic_only_looks():
  """A head that does not see the state leaves no other way from a loss to the generator."""
  spec = 'electra(adversarial=True)'
  _, grad = slope(edited(start(spec), 'head/dense/kernel', 0.0), spec)
  assert largest(grad['generator']) == largest(grad['project']) == 0 < largest(grad['critic'])


def test_the_generator_is_rewarded_place_by_place():
  spec = 'electra(adversarial=True, detect="places")'
  p = start(spec)
  out, plain = loss(p, batch(), spec), loss(p, batch(), 'electra(detect="places")')
  assert mean(out, 'reward') == pytest.approx(mean(out, 'detection'), rel=1e-6)
  assert mean(out, 'detection') == pytest.approx(mean(plain, 'detection'), rel=1e-6)
  (_, adversarial), (_, taught) = slope(p, spec), slope(p, 'electra(detect="places")')
  for name in ('discriminator', 'judge'):
    _table.trees_close(adversarial[name], taught[name], 1e-4)
  for name in ('generator', 'head', 'critic'):
    assert largest(adversarial[name]) > 0
  assert largest(jax.tree.map(np.subtract, adversarial['head'], taught['head'])) > 0


# ---- meshes, refusals

HALF = 'generator=0.5'  # two heads, that two devices can share


@pytest.mark.parametrize(
  'spec, changes',
  [
    (f'electra({HALF}, predict="all")', NARROW),
    (f'electra({HALF}, adversarial=True, share="none")', ()),
  ],
)
def test_a_mesh_changes_neither_loss_nor_gradient(spec, changes):
  b = batch(lengths=(32, 20, 10, 4, 1, 0, 32, 27))
  given = run(spec, *changes), start(spec, *changes), {}, b
  axes = _meshes.MESHES['explicit']
  _table.trees_close(_meshes.slope(*given, axes), _meshes.slope(*given), 2e-4)


@pytest.mark.parametrize(
  'spec, changes, words',
  [
    ('electra()', [*NARROW, ('model.position', 'learned()')], 'config.model.position=learned'),
    ('electra()', [*NARROW, ('model.embed_norm', 'layer_norm()')], 'acts behind the projection'),
    ('electra()', [('model.embed_norm', 'power_norm()')], 'embed_norm is used more than once'),
    (SAME, [('model.final_norm', 'power_norm()')], 'discriminator is used more than once'),
  ],
)
def test_what_is_refused(spec, changes, words):
  with pytest.raises(ValueError, match=words):
    made(spec, *changes)


def test_what_is_not_refused():
  """A projection that is shared may have positions behind it; two states of two networks."""
  position = ('model.position', 'learned()')
  assert 'position' in made(SAME, *NARROW, position).shapes['params']
  assert 'backward' in made('electra()', ('model.final_norm', 'power_norm()')).shapes
