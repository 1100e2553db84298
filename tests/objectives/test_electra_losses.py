"""The losses of `electra` place by place, against float64, and arguments that contradict each
other.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import registry
from lmjax.objectives import _electra_losses as losses

B, T, V = 3, 7, 5
DRAW = np.random.default_rng(0)
Z, LOGITS = DRAW.normal(size=(B, T)), DRAW.normal(size=(B, T, V))
TOKENS, SEEN = (DRAW.integers(0, V, (B, T)) for _ in range(2))
P = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
SIGMOID = 1 / (1 + np.exp(-Z))
single = lambda *a: [jnp.asarray(x, jnp.float32 if x.dtype == float else jnp.int32) for x in a]


def test_copying_is_a_mixture_of_the_input_and_the_softmax():
  mixed = (1 - SIGMOID)[..., None] * np.eye(V)[SEEN] + SIGMOID[..., None] * P
  np.testing.assert_allclose(mixed.sum(-1), 1)
  nll, right = losses.copying(*single(Z, LOGITS, SEEN, TOKENS))
  want = -np.log(np.take_along_axis(mixed, TOKENS[..., None], -1)[..., 0])
  np.testing.assert_allclose(nll, want, rtol=1e-5)
  np.testing.assert_array_equal(right, mixed.argmax(-1) == TOKENS)
  assert 0 < right.sum() < right.size and (SEEN == TOKENS).any() and (SEEN != TOKENS).any()


@pytest.mark.parametrize('z, copied, other', [(-300.0, 0.0, 300.0), (300.0, None, 0.0)])
def test_copying_does_not_overflow(z, copied, other):
  at = jnp.full((1, 2), z), jnp.zeros((1, 2, V)), jnp.array([[1, 1]]), jnp.array([[1, 2]])
  nll, _ = losses.copying(*at)
  slope = jax.grad(lambda z: losses.copying(z, *at[1:])[0].sum())(at[0])
  assert np.isfinite(slope).all()
  log_v = np.log(V)
  np.testing.assert_allclose(
    nll[0], [log_v if copied is None else copied, other + log_v], rtol=1e-6
  )


def test_detection():
  found = losses.detection(*single(Z), jnp.asarray(TOKENS == SEEN), jnp.ones((B, T), bool))
  chance = np.where(TOKENS == SEEN, SIGMOID, 1 - SIGMOID)
  np.testing.assert_allclose(found.loss_BN, -np.log(chance), rtol=1e-5)
  np.testing.assert_array_equal(found.right_BN, chance > 0.5)


@pytest.mark.parametrize('label', [0.0, 0.25, 1.0])
def test_cross_entropy_of_a_logit(label):
  z = jnp.array([-200.0, -3.0, 0.0, 2.0, 200.0])
  found = losses.sigmoid_cross_entropy(z, label)
  exact = np.asarray(z, np.float64)
  np.testing.assert_allclose(found, np.logaddexp(0, exact) - label * exact, rtol=1e-5, atol=1e-5)
  slope = jax.grad(lambda z: losses.sigmoid_cross_entropy(z, label).sum())(z)
  np.testing.assert_allclose(slope, 1 / (1 + np.exp(-exact)) - label, rtol=1e-5, atol=1e-6)


def test_reinforce():
  """The gradient of the logits is (softmax - drawn) (R - b), of the critic sigmoid - exp(-R)."""
  reward = DRAW.exponential(size=(B, T))
  f = lambda *a: losses.reinforce(a[0], single(SEEN)[0], *a[1:]).sum()
  given = single(LOGITS, Z, reward)
  to_z, to_critic, to_reward = jax.grad(f, (0, 1, 2))(*given)
  gain = reward + np.log(SIGMOID)
  np.testing.assert_allclose(to_z, (P - np.eye(V)[SEEN]) * gain[..., None], rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(to_critic, SIGMOID - np.exp(-reward), rtol=1e-4, atol=1e-6)
  assert not np.asarray(to_reward).any()
  raised = given[0] - 0.01 * to_z  # a step downhill makes rewarded tokens likelier
  chance = lambda z: np.take_along_axis(np.asarray(jax.nn.softmax(z)), SEEN[..., None], -1)[..., 0]
  np.testing.assert_array_equal(chance(raised) > chance(given[0]), gain > 0)


@pytest.mark.parametrize(
  'args, words',
  [
    ('share="all"', "share='all', generator=0.25: one set of layers has one width"),
    ('share="none", generator=0', 'there is no generator to part from'),
    ('predict="all", detect="places"', 'one of the two is expected'),
    ('adversarial=True, generator=0', 'rewarded for misleading the detection'),
    ('adversarial=True, predict="places"', 'rewarded for misleading the detection'),
    ('adversarial=True, weight=0', 'rewarded for misleading the detection'),
    ('share="embeddings"', 'not accepted'),
    ('predict="some"', 'not accepted'),
  ],
)
def test_arguments_that_contradict_each_other(args, words):
  with pytest.raises(ValueError, match=words):
    registry.make('objective', f'electra({args})')
