"""GaLore: which side is projected, what the inner optimizer sees, when the basis moves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import registry
from lmjax.parallel.facts import Fact

MATRIX = Fact(('embed', 'mlp'), ('embed',))
HEADS = Fact(('embed', 'heads', 'head_dim'), ('embed',))
OUT = Fact(('heads', 'head_dim', 'embed'), ('heads', 'head_dim'), 'residual')


def draw(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def run(spec, grads, params=None, fact=MATRIX):
  """(updates, states) of successive steps."""
  tx = registry.make('optim', spec, facts=dict(w=fact))()
  params = dict(w=jnp.zeros_like(grads[0]) if params is None else params)
  state, out, states, step = tx.init(params), [], [], jax.jit(tx.update)
  for g in grads:
    u, state = step(dict(w=g), state, params)
    out.append(np.asarray(u['w']))
    states.append(state)
  return out, states


@pytest.mark.parametrize('shape', [(6, 10), (10, 6), (7, 7)])
def test_full_rank_around_sgd_is_sgd(shape):
  grads = [draw(*shape, seed=n) for n in range(3)]
  got, _ = run(f'galore(inner=sgd(), rank={min(shape)}, scale=1.0)', grads)
  for u, g in zip(got, grads):
    np.testing.assert_allclose(u, g, atol=2e-6)


@pytest.mark.parametrize('shape', [(6, 10), (10, 6)])
def test_full_rank_around_adam_is_adam_in_the_turned_basis(shape):
  grads = [draw(*shape, seed=n) for n in range(4)]
  got, states = run('galore(inner=adam(b2=0.9), rank=6, scale=0.5)', grads)
  u, _, vt = np.linalg.svd(np.float64(grads[0]))
  basis = u if shape[0] == 6 else vt.T
  np.testing.assert_allclose(np.abs(basis), np.abs(states[-1].basis['w']), atol=1e-5)
  basis = np.float64(states[-1].basis['w'])
  turn = (lambda x: basis.T @ x) if shape[0] == 6 else (lambda x: (x @ basis).T)
  back = (lambda x: basis @ x) if shape[0] == 6 else (lambda x: x.T @ basis.T)
  m = v = 0
  for t, g in enumerate(grads, 1):
    r = turn(np.float64(g))
    m, v = 0.9 * m + 0.1 * r, 0.9 * v + 0.1 * r * r
    want = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.9**t)) + 1e-8)
    np.testing.assert_allclose(got[t - 1], 0.5 * back(want), atol=1e-4)


@pytest.mark.parametrize(
  'fact, shape', [(HEADS, (12, 4, 5)), (OUT, (4, 5, 12)), (MATRIX, (20, 12))]
)
def test_state_and_rank_of_the_update(fact, shape):
  (u,), (state,) = run('galore(rank=3)', [draw(*shape)], fact=fact)
  rows = {HEADS: 12, OUT: 20, MATRIX: 20}[fact]
  assert np.linalg.matrix_rank(u.reshape(rows, -1), tol=1e-4) == 3
  assert sum(x.size for x in jax.tree.leaves(state) if x.ndim) == 2 * 3 * 20 + 3 * 12


def test_the_inputs_count_as_short_in_a_square():
  g = draw(8, 8)
  (u,), _ = run('galore(inner=sgd(), rank=2, scale=1.0)', [g])
  left = np.linalg.svd(g)[0][:, :2]
  np.testing.assert_allclose(u, left @ left.T @ g, atol=1e-5)
  (u,), (state,) = run('galore(inner=adam(b2=0.999), rank=2, scale=1.0)', [g])
  basis = np.asarray(state.basis['w'])
  np.testing.assert_allclose(u, basis @ np.sign(basis.T @ g), atol=1e-3)


def test_the_basis_moves_every_gap_steps_and_moments_do_not():
  grads = [draw(6, 10, seed=n) for n in range(5)]
  _, states = run('galore(inner=sgd(momentum=0.5), rank=2, gap=2)', grads)
  bases = [s.basis['w'] for s in states]
  same = [bool(jnp.all(a == b)) for a, b in zip(bases, bases[1:])]
  assert same == [True, False, True, False]
  for n in (0, 2, 4):  # from the gradient of that step alone
    left = np.linalg.svd(grads[n])[0][:, :2]
    np.testing.assert_allclose(left @ left.T, bases[n] @ bases[n].T, atol=1e-5)
  old, new = (s.inner.trace['w'] for s in states[1:3])
  np.testing.assert_allclose(new, 0.5 * old + bases[2].T @ grads[2], atol=1e-5)


def test_a_matrix_without_a_gradient_keeps_its_basis_or_waits_for_one():
  """Of a stack: the first has no gradient when bases are renewed, the second none at first."""
  fact, shape = Fact(('layers', 'embed', 'mlp'), ('embed',)), (2, 4, 6)
  tx = registry.make('optim', 'galore(inner=sgd(), rank=2, gap=3, scale=1.0)', facts={'w': fact})()
  params = {'w': jnp.zeros(shape)}
  state, rng = tx.init(params), np.random.default_rng(0)
  left = rng.normal(size=(2, 4, 2))
  on = np.ones((2, 6))
  on[0, 3], on[1, :2] = 0, 0
  for i in range(6):
    g = left @ rng.normal(size=(2, 2, 6)) * on[:, i, None, None]  # of rank 2, always the same two
    g = jnp.asarray(g, jnp.float32)
    updates, state = tx.update({'w': g}, state, params)
    for layer in range(2):
      np.testing.assert_allclose(updates['w'][layer], g[layer], atol=1e-4 * np.abs(g).max())


def test_the_sign_of_the_basis_is_no_accident():
  g = draw(6, 10)
  _, (a, b) = run('galore(rank=4, gap=1)', [g, -g])
  np.testing.assert_allclose(a.basis['w'], b.basis['w'], atol=1e-6)
  largest = np.abs(a.basis['w']).argmax(axis=0)
  assert np.all(np.asarray(a.basis['w'])[largest, np.arange(4)] > 0)


def test_the_inner_part_sees_the_parameter_in_the_same_basis():
  w, g = draw(6, 10, seed=1), draw(6, 10)
  with_it, (state,) = run('galore(inner=sgd() | decay(rate=0.1), rank=2, scale=0.5)', [g], w)
  without, _ = run('galore(inner=sgd(), rank=2, scale=0.5)', [g], w)
  basis = state.basis['w']
  np.testing.assert_allclose(with_it[0] - without[0], 0.05 * basis @ basis.T @ w, atol=1e-6)


def test_an_inner_part_that_reads_facts_gets_those_of_the_projection():
  """clip_update takes the root mean square of each layer's R, not of the stack."""
  fact = Fact(('embed', 'layers', 'mlp'), ('embed',))
  g = draw(6, 2, 10) * jnp.array([1.0, 100.0])[:, None]
  spec = 'galore(inner=sgd() | clip_update(rms=0.1), rank=2, scale=1.0)'
  (u,), _ = run(spec, [g], fact=fact)
  for n in range(2):
    (alone,), _ = run(spec, [g[:, n]])
    np.testing.assert_allclose(u[:, n], alone, atol=1e-6)
    np.testing.assert_allclose(np.sqrt(np.sum(alone**2)), 0.1 * np.sqrt(20), rtol=1e-4)


def test_what_is_no_matrix_inside_a_layer_goes_through_in_full():
  for fact in (
    Fact(('vocab', 'embed'), ('vocab',), 'embed'),
    Fact(('vocab', 'embed'), ('embed',), 'unembed'),
    Fact(('position', 'embed'), ('position',), 'position'),
    Fact(('layers', 'embed'), (), 'norm'),
  ):
    g = draw(10, 6)
    (u,), _ = run('galore(rank=2)', [g], fact=fact)
    np.testing.assert_allclose(u, np.sign(g), rtol=1e-3)
  (u,), _ = run('galore(rank=7)', [draw(10, 6)])  # would become no smaller
  np.testing.assert_allclose(np.abs(u), 1, rtol=1e-3)


def test_eight_bit_moments_of_the_projection():
  spec = 'galore(inner=eight_bit(inner=adam(), min_size=1), rank=2)'
  _, (state,) = run(spec, [draw(6, 10)])
  assert state.inner.codes.mu['w'].shape == (2, 10)
  assert state.inner.codes.mu['w'].dtype == jnp.uint8
