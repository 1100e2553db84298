"""cuDNN's fused attention through `jax.nn.dot_product_attention`, on NVIDIA GPUs.

Documents are a mask that is added to the logits, in the type of the queries, see `masks`; the
kernel writes a gradient of the same size for it. No soft-cap, no bias (which has a gradient of the
size of the logits), no second derivative.

jax 0.10.2 to 0.12 check types, head sizes and devices while a function is traced, and raise;
`refuses` says the same before.
"""

import functools
import re

import jax
import jax.numpy as jnp

from lmjax.kernels.attention import masks
from lmjax.kernels.attention import pieces

CALL = functools.partial(jax.nn.dot_product_attention, implementation='cudnn')


def refuses(
  *, platform, q, k, causal, window, cap, bias, aligned, segments, consecutive, twice
) -> str:
  if platform != 'gpu':
    return f'cudnn runs on NVIDIA GPUs, this is for a {platform}'
  if twice:
    return 'cudnn has no second derivative'
  if cap is not None:
    return 'cudnn has no soft-cap'
  if bias:
    return 'cudnn takes no bias here'
  if q.dtype not in (jnp.bfloat16, jnp.float16) or k.dtype != q.dtype:
    return f'cudnn takes bfloat16 or float16, not {q.dtype} and {k.dtype}'
  if why := pieces.refuses(q, k):
    return why
  if not masks.plain(causal, window, aligned, segments) and (q.shape[1] % 2 or k.shape[1] % 2):
    return f'cudnn takes masks of even lengths, not {q.shape[1]} queries and {k.shape[1]} keys'
  if why := masks.refuses(q, k, causal, window, aligned, segments, consecutive, bytes_each=2):
    return f'cudnn {why}'
  why, largest = device()
  if why:
    return why
  if q.shape[3] % 8 or q.shape[3] > largest:
    return f'cudnn takes heads of a multiple of 8 up to {largest} here, these have {q.shape[3]}'
  return ''


def device() -> tuple[str, int]:
  """(why the GPUs of this process cannot, or '', the largest head)."""
  try:
    first = jax.local_devices(backend='gpu')[0]
  except RuntimeError:
    return 'there is no GPU here', 0
  capability = str(getattr(first, 'compute_capability', ''))
  if not re.fullmatch(r'\d+\.\d+', capability):
    return 'cudnn runs on NVIDIA GPUs, this is another', 0
  capability = tuple(map(int, capability.split('.')))
  if not (version := installed()):
    return 'cuDNN is not detected', 0
  if capability < (8, 0):
    return 'cudnn needs an Ampere GPU or a later one', 0
  if capability == (10, 3) and version < 91100:
    return f'cudnn needs the version 9.11 on this GPU, this is {version}', 0
  return '', 256 if capability >= (9, 0) else 128


def installed() -> int:
  """cuDNN's version as jax finds it, 0 where it does not."""
  try:
    from jax._src.cudnn.fused_attention_stablehlo import check_cudnn_version

    return check_cudnn_version()
  except (ImportError, RuntimeError):
    return 0


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
  """(B, T, H, K) from q (B, T, H, K) and k, v (B, S, G, K), as far as `refuses` lets it."""
  del cap, bias
  return masks.attention(
    CALL,
    (q, k, v),
    (q_positions, k_positions, q_segments, k_segments),
    causal=causal,
    window=window,
    aligned=aligned,
    scale=float(scale),
  )
