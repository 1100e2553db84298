"""The losses of `electra`'s two networks, place by place, float32."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Judged(NamedTuple):
  """What the model is judged by: the loss of each place, where it counts, which places are right;
  all (B, N), N places of a row or all its tokens.
  """

  loss_BN: jax.Array
  counts_BN: jax.Array
  right_BN: jax.Array


def sigmoid_cross_entropy(z, label):
  """-label log sigmoid(z) - (1 - label) log(1 - sigmoid(z)); its gradient, sigmoid(z) - label, also
  where z is 0.
  """
  label = jnp.asarray(label, z.dtype)
  return -label * jax.nn.log_sigmoid(z) - (1 - label) * jax.nn.log_sigmoid(-z)


def detection(z_BT, fake_BT, counts_BT) -> Judged:
  """Whether a token is not the original one."""
  right_BT = (z_BT > 0) == fake_BT
  return Judged(sigmoid_cross_entropy(z_BT, fake_BT), counts_BT, right_BT & counts_BT)


def picked(z_BNV, tokens_BN):
  """The logit of each token."""
  hot_BNV = jax.lax.broadcasted_iota(jnp.int32, z_BNV.shape, 2) == tokens_BN[..., None]
  return jnp.sum(jnp.where(hot_BNV, z_BNV, 0), axis=-1)


def likelihood(z_BNV, tokens_BN):
  """(-log softmax(z)[token], whether it is the likeliest one)."""
  nll_BN = jax.nn.logsumexp(z_BNV, axis=-1) - picked(z_BNV, tokens_BN)
  return nll_BN, jnp.argmax(z_BNV, axis=-1) == tokens_BN


def copying(z_BT, logits_BTV, seen_BT, tokens_BT):
  """(-log p(token), whether it is the likeliest one) with a copying mechanism, D = 1 - sigmoid(z):

  p(v) = D [v = seen] + (1 - D) softmax(logits)[v]
  """
  copy_BT, other_BT = jax.nn.log_sigmoid(-z_BT), jax.nn.log_sigmoid(z_BT)
  lse_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
  said = lambda found_BT: other_BT + found_BT - lse_BT
  seen_log_BT = jnp.logaddexp(copy_BT, said(picked(logits_BTV, seen_BT)))
  log_BT = jnp.where(seen_BT == tokens_BT, seen_log_BT, said(picked(logits_BTV, tokens_BT)))
  best_BT = jnp.maximum(said(jnp.max(logits_BTV, axis=-1)), seen_log_BT)
  return -log_BT, log_BT >= best_BT


def reinforce(z_BKV, drawn_BK, critic_BK, reward_BK):
  """A loss whose gradient is REINFORCE's with a learned baseline, and teaches the baseline.

  -log softmax(z)[drawn] sg(R - b) + CE(sigmoid(critic), exp(-R)),  b = -log sigmoid(critic)
  """
  reward_BK = jax.lax.stop_gradient(reward_BK)
  gain_BK = reward_BK - jax.lax.stop_gradient(sigmoid_cross_entropy(critic_BK, 1.0))
  nll_BK, _ = likelihood(z_BKV, drawn_BK)
  return nll_BK * gain_BK + sigmoid_cross_entropy(critic_BK, jnp.exp(-reward_BK))
