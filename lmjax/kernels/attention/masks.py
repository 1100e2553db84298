"""Kernels with the interface of `jax.nn.dot_product_attention`: flags, or a mask of who sees whom.

Rows without documents or padding go with flags alone (causality, a window behind) and cost no
memory; all else is a mask (B, 1, T, S), as long as it takes at most MOST bytes on a device.
"""

import jax.numpy as jnp

from lmjax.kernels.attention import pieces
from lmjax.kernels.attention.reference import allowed

MOST = 2**28


def plain(causal, window, aligned, segments) -> bool:
  """Whether flags say who sees whom."""
  if segments:
    return False
  return not window if not causal else aligned


def refuses(q, k, causal, window, aligned, segments, consecutive, bytes_each: int) -> str:
  """The rest of a sentence about a kernel that keeps a mask with so many bytes a pair, or ''."""
  if plain(causal, window, aligned, segments):
    if window is not None and not consecutive:
      return 'counts a window in places, and tokens between these were left out'
    return ''
  rows, steps, *_ = pieces.held(q, k)[0].shape
  size = bytes_each * rows * steps * k.shape[1]
  if size > MOST:
    return f'would take a mask of {size:,} bytes for these rows, at most {MOST:,} are allowed'
  return ''


def attention(call, qkv, where, *, causal, window, aligned, scale, **more):
  """(B, T, H, K) from q (B, T, H, K) and k, v (B, S, G, K); where: positions of queries and keys,
  segments of both. call: as `jax.nn.dot_product_attention` takes it, with `more` beside.
  """
  how = dict(scale=scale, **more)
  if plain(causal, window, aligned, where[-1] is not None):
    window = None if window is None else (window - 1, 0)
    how |= dict(is_causal=causal, local_window_size=window)
    return pieces.run(lambda *qkv: call(*qkv, **how), *qkv)

  def one(q, k, v, *where):
    mask = allowed(*where, causal=causal, window=window)
    y = call(q, k, v, mask=mask[:, None], is_causal=causal and aligned, **how)
    return jnp.where(jnp.any(mask, axis=2)[..., None, None], y, 0)

  return pieces.run(one, *qkv, *where)
