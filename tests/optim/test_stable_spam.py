"""Stable-SPAM line by line: peaks, norms, resets."""

import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import registry
from lmjax.parallel.facts import Fact

VECTOR = Fact(('embed',), (), 'norm')


def make(fact=VECTOR, **args):
  return registry.get('optim', 'stable_spam').obj(facts={'w': fact}, **args)


def run(tx, grads):
  """(update, state) after each step."""
  state, out = tx.init({'w': grads[0]}), []
  for g in grads:
    u, state = tx.update({'w': g}, state)
    out.append((np.asarray(u['w'], np.float64), state))
  return out


def gradient(tx, grads):
  """The gradient that reaches Adam in the last step: b1 = 0 and a life of one step make m of it."""
  return np.asarray(run(tx, grads)[-1][1].m['w'], np.float64)


def bare(**args):
  return make(**{**dict(b1=0.0, every=1), **args})


def test_the_first_gradient_has_norm_one_and_adams_step_is_its_sign():
  g = jnp.array([3.0, -4.0, 12.0])
  assert np.linalg.norm(gradient(bare(), [g])) == pytest.approx(1.0, rel=1e-6)
  u, state = run(make(), [1e3 * g])[0]
  np.testing.assert_allclose(u, [1, -1, 1], rtol=1e-4)
  assert state.metrics['clip_rate'] == 0


def test_norms_become_the_mean_over_the_root_mean_square():
  """gamma1 = 0.5, gamma2 = 0.75; norms 1 and 3 without anything cut (the peak forgets at once)."""
  g = jnp.array([0.6, 0.8])
  got = gradient(bare(gamma1=0.5, gamma2=0.75, gamma3=0.0), [g, 3 * g])
  mu = (0.5 * 0.5 * 1 + 0.5 * 3) / (1 - 0.5**2)
  nu = (0.75 * 0.25 * 1 + 0.25 * 9) / (1 - 0.75**2)
  np.testing.assert_allclose(got, np.asarray(g) * mu / np.sqrt(nu), rtol=1e-6)


def test_entries_above_the_running_peak_are_scaled_not_cut_to_it():
  """Peaks 1, 1, 1 and 10: M = mean; the entries 10 and 5 exceed it and keep their ratio."""
  quiet, loud = jnp.array([1.0, 0.5, -0.25]), jnp.array([10.0, -5.0, 0.25])
  tx = bare(gamma1=0.0, gamma2=0.0, gamma3=0.9)
  out = run(tx, [quiet] * 3 + [loud])
  peak = (0.1 * (0.9**3 + 0.9**2 + 0.9) * 1 + 0.1 * 10) / (1 - 0.9**4)
  assert 0.25 < peak < 5
  want = np.array([10.0, -5.0, 0.25])
  want[:2] *= peak / 10
  want /= np.linalg.norm(want)
  np.testing.assert_allclose(np.asarray(out[-1][1].m['w']), want, rtol=1e-5)
  assert float(out[-1][1].metrics['clip_rate']) == pytest.approx(2 / 3)


def test_a_reset_begins_the_moments_anew_with_this_gradient():
  """Step 3 of every=3 is as a first step for Adam, but the running norms remember."""
  g, h = jnp.array([3.0, 4.0]), jnp.array([-6.0, 8.0])
  out = run(make(every=3, gamma3=0.0), [g, g, h, h])
  np.testing.assert_allclose(out[2][0], [-1, 1], rtol=1e-4)
  assert abs(run(make(every=0, gamma3=0.0), [g, g, h])[-1][0][0]) < 0.6
  mu = [5.0, 5.0]
  raw = 0.7 * (0.7 * 0.3 * 5 + 0.3 * 5) + 0.3 * 10
  mu = raw / (1 - 0.7**3)
  np.testing.assert_allclose(np.ravel(out[2][1].mu['w']), mu, rtol=1e-5)
  second = run(make(every=0, gamma3=0.0), [g, g, h, h])[-1][1]
  for name in ('mu', 'nu', 'peak'):
    np.testing.assert_allclose(getattr(out[3][1], name)['w'], getattr(second, name)['w'], rtol=1e-6)


@pytest.mark.parametrize('every', [2, 3, 5])
def test_lives_of_every_steps(every):
  """m is the corrected mean over this life only: with a gradient that changes sign at a reset it
  never mixes.
  """
  sign = lambda t: (-1.0) ** (t // every)
  out = run(make(every=every, gamma3=0.0), [jnp.full(2, sign(t)) for t in range(1, 4 * every)])
  for t, (u, _) in enumerate(out, 1):
    np.testing.assert_allclose(u, sign(t), rtol=1e-3, err_msg=f'step {t}')


def test_layers_have_numbers_of_their_own():
  stack = Fact(('layers', 'embed'), (), 'norm')
  rng = np.random.default_rng(0)
  a, b = (jnp.asarray(rng.standard_normal((3, 4)) * s, jnp.float32) for s in (1, 30))
  both = run(make(stack), [jnp.stack([x, y]) for x, y in zip(a, b)])
  for i, grads in enumerate((a, b)):
    alone = run(make(), list(grads))
    np.testing.assert_allclose(both[-1][0][i], alone[-1][0], rtol=1e-6)


def test_silence_in_between_is_survived():
  g = jnp.array([1.0, 2.0])
  out = run(make(), [0 * g, g, 0 * g, g])
  assert all(np.all(np.isfinite(u)) for u, _ in out)
  np.testing.assert_array_equal(out[0][0], 0)


def test_half_precision():
  """A norm of 1e5 is beyond float16."""
  g = jnp.full(4, 5e4, jnp.float16)
  u, state = run(make(), [g, g])[-1]
  np.testing.assert_allclose(u, 1.0, rtol=1e-3)
  assert state.nu['w'].dtype == state.v['w'].dtype == jnp.float32
