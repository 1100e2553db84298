"""AdaGC by hand: thresholds from clipped norms, a running minimum in the warm-up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import registry
from lmjax.parallel.facts import Fact

VECTOR = Fact(('embed',), (), 'norm')
STACK = Fact(('layers', 'embed', 'mlp'), ('embed',))


def adagc(facts, **args):
  return registry.get('optim', 'adagc').obj(facts=facts, **args)


def run(tx, grads):
  """(updates, thresholds) of successive steps."""
  state, out = tx.init(grads[0]), []
  for g in grads:
    u, state = tx.update(g, state)
    out.append((u, state))
  return out


def vector(norm):
  return {'w': jnp.array([0.6, -0.8]) * norm}


def gammas(out, name='w'):
  return [np.asarray(s.gamma[name]).ravel() for _, s in out]


def test_the_threshold_takes_the_clipped_norm():
  """gamma 0.5, a norm of 10: clipped to 1.05 . 0.5 = 0.525, the next gamma is 0.5005."""
  out = run(adagc({'w': VECTOR}, start=2), [vector(0.5), vector(10.0)])
  np.testing.assert_allclose(out[1][0]['w'], 0.525 * np.array([0.6, -0.8]), rtol=1e-6)
  np.testing.assert_allclose(np.ravel(gammas(out)), [0.5, 0.5005], rtol=1e-6)


def test_warm_up_clips_globally_and_keeps_the_least_norm():
  """Norms 3 and 4 together are 5: clipped to 0.6 and 0.8. Step 3 is the first of the later ones."""
  facts = dict(a=VECTOR, b=VECTOR)
  grads = [
    dict(a=jnp.array([3.0]), b=jnp.array([4.0])),
    dict(a=jnp.array([0.3]), b=jnp.array([0.9])),
    dict(a=jnp.array([0.3]), b=jnp.array([9.0])),
  ]
  out = run(adagc(facts, start=3), grads)
  np.testing.assert_allclose(out[0][0]['a'], 0.6, rtol=1e-6)
  np.testing.assert_allclose(out[1][0]['b'], 0.9, rtol=1e-6)
  np.testing.assert_allclose(np.ravel(gammas(out, 'a'))[:2], [0.6, 0.3], rtol=1e-6)
  np.testing.assert_allclose(np.ravel(gammas(out, 'b'))[:2], [0.8, 0.8], rtol=1e-6)
  np.testing.assert_allclose(out[2][0]['b'], 1.05 * 0.8, rtol=1e-6)
  assert [float(s.metrics['clip_rate']) for _, s in out] == [1.0, 0.0, 0.5]


def test_steady_norms_are_never_clipped():
  out = run(adagc({'w': VECTOR}, start=3), [vector(0.7)] * 30)
  for u, _ in out:
    np.testing.assert_array_equal(u['w'], vector(0.7)['w'])


def test_lasting_clipping_raises_the_threshold_by_a_thousandth_a_step():
  out = run(adagc({'w': VECTOR}, start=2), [vector(0.5)] + [vector(1e3)] * 20)
  np.testing.assert_allclose(gammas(out)[-1], 0.5 * 1.001**20, rtol=1e-5)


def test_another_tensors_spike_changes_nothing_after_the_warm_up():
  facts = dict(a=VECTOR, b=VECTOR)
  calm = dict(a=jnp.array([0.1]), b=jnp.array([0.2]))
  loud = dict(calm, b=1000 * calm['b'])
  tx = adagc(facts, start=2)
  one, two = run(tx, [calm, calm, calm]), run(tx, [calm, loud, calm])
  for (u, _), (v, _) in zip(one, two):
    np.testing.assert_array_equal(u['a'], v['a'])


def test_layers_of_a_stack_have_thresholds_of_their_own():
  base = jnp.stack([jnp.full((2, 2), 0.1), jnp.full((2, 2), 0.2)])
  out = run(adagc({'w': STACK}, start=2), [{'w': base}, {'w': base.at[1].multiply(100)}])
  np.testing.assert_array_equal(out[1][0]['w'][0], base[0])
  np.testing.assert_allclose(out[1][0]['w'][1], 1.05 * base[1], rtol=1e-6)
  np.testing.assert_allclose(gammas(out)[0], [0.2, 0.4], rtol=1e-6)


@pytest.mark.parametrize('at', [0, 1, 3])
def test_a_step_without_gradient_leaves_the_threshold(at):
  """In the warm-up it would else become 0 and hold the tensor there for ever."""
  grads = [vector(0.5)] * 5
  grads[at] = vector(0.0)
  out = run(adagc({'w': VECTOR}, start=3), grads)
  np.testing.assert_array_equal(out[at][0]['w'], [0, 0])
  np.testing.assert_allclose(gammas(out)[-1], 0.5, rtol=1e-6)
  np.testing.assert_allclose(out[-1][0]['w'], vector(0.5)['w'], rtol=1e-6)


def test_a_tensor_first_seen_after_the_warm_up_starts_with_its_norm():
  out = run(adagc({'w': VECTOR}, start=2), [vector(0.0)] * 4 + [vector(8.0), vector(80.0)])
  np.testing.assert_array_equal(out[4][0]['w'], vector(8.0)['w'])
  np.testing.assert_allclose(gammas(out)[4], 8.0, rtol=1e-6)
  np.testing.assert_allclose(out[5][0]['w'], vector(8.4)['w'], rtol=1e-6)


def test_half_precision_thresholds_still_move():
  """A hundredth of a bfloat16 is lost after three steps of a thousandth."""
  g = jax.tree.map(lambda x: x.astype(jnp.bfloat16), vector(0.5))
  big = jax.tree.map(lambda x: 100 * x, g)
  out = run(adagc({'w': VECTOR}, start=2), [g] + [big] * 5)
  norm = float(np.linalg.norm(np.asarray(g['w'], np.float64)))
  np.testing.assert_allclose(gammas(out)[-1], norm * 1.001**5, rtol=1e-5)
  assert out[-1][0]['w'].dtype == jnp.bfloat16
