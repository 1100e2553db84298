"""Attention for the XLA compiler: heads before time, and for causal rows only the blocks at or below the diagonal.

Works in (batch, heads, time, head) order, which XLA:CPU multiplies faster than (batch, time, heads, head).
"""

import jax
import jax.numpy as jnp

from lmjax.kernels.attention.reference import allowed

BLOCK = 128
NEVER = -1e30  # finite, so that a row without any key gives numbers, which the mask then removes


def _attend(q, k, v, mask, bias, *, cap, scale):
  """q (B, G, R, T, K), k and v (B, G, S, K), mask (B or 1, 1, 1, T, S) -> (B, G, R, T, K)."""
  logits = jnp.einsum('bgrtk,bgsk->bgrts', q * scale, k, preferred_element_type=jnp.float32)
  if cap is not None:
    logits = cap * jnp.tanh(logits / cap)
  if bias is not None:
    logits = logits + bias
  logits = jnp.where(mask, logits, NEVER)
  weights = jnp.exp(logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True)))
  weights = jnp.where(mask, weights, 0)
  total = jnp.maximum(jnp.sum(weights, axis=-1, keepdims=True), 1e-30)
  y = jnp.einsum('bgrts,bgsk->bgrtk', weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
  return y / total


def attention(q, k, v, *, q_positions, k_positions, q_segments, k_segments, causal, window, cap, scale, bias, aligned):
  """(B, T, H, K) from q (B, T, H, K) and k, v (B, S, G, K). `aligned`: key i stands at query i's place in the row."""
  batch, steps, heads, size = q.shape
  groups = k.shape[2]
  q5 = q.reshape(batch, steps, groups, heads // groups, size).transpose(0, 2, 3, 1, 4)
  k4, v4 = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
  mask = allowed(q_positions, k_positions, q_segments, k_segments, causal=causal, window=window)[:, None, None]
  if bias is not None:
    bias = bias.reshape(bias.shape[0], groups, heads // groups, *bias.shape[2:])
  skip = aligned and causal and steps > BLOCK
  out = []
  for start in range(0, steps, BLOCK) if skip else (0,):
    stop = min(start + BLOCK, steps) if skip else steps
    first = max(0, start - window + 1) if skip and window is not None else 0
    last = stop if skip else k.shape[1]
    out.append(_attend(q5[..., start:stop, :], k4[:, :, first:last], v4[:, :, first:last],
                       mask[..., start:stop, first:last],
                       None if bias is None else bias[..., start:stop, first:last], cap=cap, scale=scale))
  y = jnp.concatenate(out, axis=3) if len(out) > 1 else out[0]
  return y.transpose(0, 3, 1, 2, 4).reshape(batch, steps, heads, size).astype(q.dtype)
