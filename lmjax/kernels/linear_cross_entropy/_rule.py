"""What implementations share: what is static of a call, and what all of them return."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Rule(NamedTuple):
  scale: float = 1.0
  cap: float | None = None
  z_loss: float = 0.0
  label_smoothing: float = 0.0


class Losses(NamedTuple):
  """The weighted sum of the losses, and of each token (B, T) its nll and whether no word is
  likelier than its target; float32.
  """

  total: jax.Array
  nll_BT: jax.Array
  hits_BT: jax.Array


def weighted(x, weights):
  """The sum over tokens of weight above 0: others may be of any value."""
  return jnp.sum(jnp.where(weights > 0, x, 0.0) * weights)


def real(bias_V, vocab: int):
  """Which words may be predicted; others only round the vocabulary up."""
  return jnp.ones(vocab, bool) if bias_V is None else bias_V > -1e29
