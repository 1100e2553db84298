"""Resets: what an inner optimizer is after one, when they come, and that they clear everything."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lmjax import registry
from lmjax.parallel.facts import Fact

FACTS = dict(
  w=Fact(('embed', 'mlp'), ('embed',)),
  table=Fact(('vocab', 'embed'), ('vocab',), 'embed'),
)
SHAPES = dict(w=(8, 12), table=(10, 8))


def draw(seed):
  rng = np.random.default_rng(seed)
  return {k: jnp.asarray(rng.standard_normal(s), jnp.float32) for k, s in SHAPES.items()}


def run(spec, n, first=0, params=None):
  """(updates, states) of n steps, gradients counted from `first`; the parameters stay."""
  tx = optax.with_extra_args_support(registry.make('optim', spec, facts=FACTS)())
  params = params or draw(99)
  loss = lambda p, one_in=1: sum(jnp.sum(x**4) for x in jax.tree.leaves(p))
  step = jax.jit(lambda g, s: tx.update(g, s, params, obj_fn=loss, rng=jax.random.key(1)))
  state, updates, states = tx.init(params), [], []
  for i in range(n):
    u, state = step(draw(first + i), state)
    updates.append(u)
    states.append(state)
  return updates, states


def test_the_step_behind_a_reset_has_the_size_1_in_every_coordinate():
  """With m alone cleared it would be about a tenth, without the count about three times that."""
  updates, _ = run('reset(inner=adam(b2=0.999, eps=1e-30), every=3)', 8)
  sizes = [np.abs(np.concatenate([np.ravel(x) for x in u.values()])) for u in updates]
  for i, size in enumerate(sizes):
    if i % 3 == 0:
      np.testing.assert_allclose(size, 1, rtol=1e-5)
      np.testing.assert_array_equal(np.sign(updates[i]['w']), np.sign(draw(i)['w']))
    else:
      assert np.median(np.abs(size - 1)) > 0.05, i


@pytest.mark.parametrize(
  'inner',
  [
    'adam()',
    'adam() | decay(rate=0.1)',
    'lion()',
    'soap(every=2)',
    'galore(rank=2, gap=3)',
    'eight_bit(min_size=1)',
    'stable_spam(every=3)',
    'sophia_h(every=3)',
    'split(matrix=muon(), rest=adam())',
  ],
)
def test_updates_behind_a_reset_are_those_of_a_fresh_optimizer(inner):
  got, states = run(f'reset(inner={inner}, every=4)', 7)
  fresh, fresh_states = run(f'reset(inner={inner}, every=4)', 3, first=4)
  for a, b in zip(got[4:], fresh):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7), a, b)
  same = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7)
  jax.tree.map(same, states[-1].inner, fresh_states[-1].inner)
  plain, _ = run(f'reset(inner={inner}, every=100)', 7)
  assert any(np.any(a['w'] != b['w']) for a, b in zip(got[4:], plain[4:]))


def test_the_state_tells_when():
  """Moments are cleared before an update, so that a checkpoint at a multiple still has the old."""
  _, states = run('reset(every=3)', 7)
  assert [int(s.count) for s in states] == [1, 2, 3, 4, 5, 6, 7]
  assert [int(s.inner.count) for s in states] == [1, 2, 3, 1, 2, 3, 1]


def test_within_split_only_the_matrices_are_reset():
  updates, _ = run('split(matrix=reset(inner=adam(), every=2), rest=adam())', 5)
  plain, _ = run('adam()', 5)
  both, _ = run('reset(every=2)', 5)
  for a, b, c in zip(updates, plain, both):
    np.testing.assert_allclose(a['table'], b['table'], rtol=1e-5)
    np.testing.assert_allclose(a['w'], c['w'], rtol=1e-5)
  assert np.abs(updates[2]['w'] - plain[2]['w']).max() > 0.1
  assert np.abs(both[2]['table'] - plain[2]['table']).max() > 0.1


def test_needs_are_those_of_the_inner_part():
  part = registry.make('optim', 'reset(inner=sophia_g())', facts=FACTS)
  assert part.fact('needs') == ('sample_fn', 'rng')
  assert registry.make('optim', 'reset()', facts=FACTS).fact('needs') == ()


@pytest.mark.parametrize('inner', ['refactor()', 'adam() | refactor()'])
def test_an_inner_part_that_moves_the_parameters_is_refused(inner):
  """Its second half would never be called."""
  part = registry.make('optim', f'reset(inner={inner})', facts=FACTS)
  with pytest.raises(ValueError, match=r"reset\.inner='refactor\(\)' is not accepted: a part that"):
    part()
