"""Attention kernels of tokamax (github.com/openxla/tokamax), where it is installed: Mosaic or
Triton on GPUs, Mosaic on TPUs.

It takes what cuDNN takes, soft-caps and float32 besides; no bias here, whose gradient has the size
of the logits, and no second derivative. Never chosen by itself, since nothing was measured: ask
with config.kernels.attention='tokamax'. Its own fallbacks to XLA are not used: what its kernels
refuse for a shape is an error.
"""

import functools
import importlib.util

import jax

from lmjax.kernels.attention import masks
from lmjax.kernels.attention import pieces

KERNELS = 'mosaic', 'triton'


def refuses(
  *, platform, q, k, causal, window, cap, bias, aligned, segments, consecutive, twice
) -> str:
  del cap
  if importlib.util.find_spec('tokamax') is None:
    return "tokamax is not installed: pip install 'lmjax[tokamax]'"
  if platform not in ('gpu', 'tpu'):
    return f'the kernels of tokamax run on GPUs and TPUs, this is for a {platform}'
  if jax.default_backend() != platform:
    return f'tokamax asks the device when it is traced, and there is no {platform} here'
  if twice:
    return 'tokamax has no second derivative'
  if bias:
    return 'tokamax takes no bias here'
  if why := pieces.refuses(q, k):
    return why
  if why := masks.refuses(q, k, causal, window, aligned, segments, consecutive, bytes_each=1):
    return f'tokamax {why}'
  return ''


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
  """(B, T, H, K) from q (B, T, H, K) and k, v (B, S, G, K), as far as `refuses` lets it. Raises
  ValueError where no kernel takes these shapes.
  """
  del bias
  try:
    return masks.attention(
      _call(),
      (q, k, v),
      (q_positions, k_positions, q_segments, k_segments),
      causal=causal,
      window=window,
      aligned=aligned,
      scale=float(scale),
      logits_soft_cap=cap,
    )
  except (NotImplementedError, ExceptionGroup) as e:
    raise ValueError(
      f"config.kernels.attention='tokamax': its kernels do not take queries {q.shape} and keys "
      f"{k.shape} of {q.dtype} on this device ({e}); 'auto' finds one that does"
    ) from e


def _call():
  from absl import flags
  import tokamax

  if not flags.FLAGS.is_parsed():  # else tokamax parses the command line, which is not absl's
    flags.FLAGS.mark_as_parsed()
  return functools.partial(tokamax.dot_product_attention, implementation=KERNELS)
