"""Attention as written: every logit in float32, one softmax, no regard for speed. What the others
are checked against.
"""

import jax
import jax.numpy as jnp


def allowed(q_positions, k_positions, q_segments, k_segments, *, causal, window):
  """Boolean (B, T, S): which keys each query may see."""
  gap = q_positions[:, :, None] - k_positions[:, None, :]
  mask = jnp.ones(gap.shape, bool)
  if causal:
    mask &= gap >= 0
  if window is not None:
    mask &= jnp.abs(gap) < window
  if k_segments is not None:
    mask &= k_segments[:, None, :] > 0
    if q_segments is not None:
      mask &= q_segments[:, :, None] == k_segments[:, None, :]
  return mask


def attention(
  q,
  k,
  v,
  *,
  q_positions,
  k_positions,
  q_segments,
  k_segments,
  causal,
  window,
  cap,
  scale,
  bias,
  aligned,
):
  """(B, T, H, K) from q (B, T, H, K) and k, v (B, S, G, K). A query that may see nothing gives
  zero.
  """
  del aligned
  groups = q.shape[2] // k.shape[2]
  k, v = jnp.repeat(k, groups, axis=2), jnp.repeat(v, groups, axis=2)
  logits = jnp.einsum('bthk,bshk->bhts', q.astype(jnp.float32), k.astype(jnp.float32)) * scale
  if cap is not None:
    logits = cap * jnp.tanh(logits / cap)
  if bias is not None:
    logits = logits + bias
  mask = allowed(q_positions, k_positions, q_segments, k_segments, causal=causal, window=window)[
    :, None
  ]
  logits = jnp.where(mask, logits, -jnp.inf)
  top = jax.lax.stop_gradient(
    jnp.max(logits, axis=-1, keepdims=True)
  )  # the softmax does not depend on it
  weights = jnp.where(mask, jnp.exp(logits - jnp.where(jnp.isfinite(top), top, 0)), 0)
  total = jnp.sum(weights, axis=-1, keepdims=True)
  weights = weights / jnp.where(total == 0, 1, total)
  return jnp.einsum('bhts,bshk->bthk', weights, v.astype(jnp.float32)).astype(q.dtype)
