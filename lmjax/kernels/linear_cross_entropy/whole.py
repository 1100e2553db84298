"""The logits of all tokens at once, left to the compiler. What the others are checked against."""

import jax
import jax.numpy as jnp

from lmjax.kernels.linear_cross_entropy._rule import Losses, Rule, real, weighted
from lmjax.nn import params


def logits(hidden_BTD, unembed_VD, bias_V, scale: float, cap: float | None):
  """(B, T, V) float32: cap(scale * hidden . unembed) + bias."""
  y = params.contract(hidden_BTD, unembed_VD.T, 1, ('vocab',)).astype(jnp.float32)
  if scale != 1:
    y = y * scale
  if cap is not None:
    y = cap * jnp.tanh(y / cap)
  return y if bias_V is None else y + bias_V


def linear_cross_entropy(x_BTD, unembed_VD, bias_V, targets_BT, weights_BT, rule: Rule) -> Losses:
  z_BTV = logits(x_BTD, unembed_VD, bias_V, rule.scale, rule.cap)
  lse_BT = jax.nn.logsumexp(z_BTV, axis=-1)
  hot = jax.lax.broadcasted_iota(jnp.int32, z_BTV.shape, 2) == targets_BT[..., None]
  right_BT = jnp.sum(jnp.where(hot, z_BTV, 0.0), axis=-1)
  nll_BT = lse_BT - right_BT
  loss_BT = nll_BT
  if rule.label_smoothing:
    mean_BT = jnp.mean(z_BTV, axis=-1, where=real(bias_V, z_BTV.shape[-1]))
    loss_BT = (1 - rule.label_smoothing) * nll_BT + rule.label_smoothing * (lse_BT - mean_BT)
  if rule.z_loss:
    loss_BT = loss_BT + rule.z_loss * jnp.square(lse_BT)
  hits_BT = (right_BT >= jnp.max(z_BTV, axis=-1)).astype(jnp.float32)
  return Losses(weighted(loss_BT, weights_BT), nll_BT, hits_BT)
