"""Pallas kernels for NVIDIA GPUs (Triton): logits stay in registers.

Forward, a program takes a tile of tokens over SPAN words with a running maximum; what the spans
give is put together behind. Backward, a kernel makes the logits again and writes their gradients in
the dtype of x, for a chunk of tokens at a time, and XLA multiplies these with W and x: four
products of tokens and words where `chunked` has three. A multiprocessor has no room for sums of a
tile by the whole width, and adding to them in main memory by atomics, as Cut Cross-Entropy does,
would make no two runs alike.

What it saves is memory and traffic: of logits nothing is written but their gradients, once, in the
dtype of x. Operands of bfloat16, float16 or float32, sums in float32; float32 is multiplied as
jax_default_matmul_precision says, in TensorFloat-32 by default, as XLA does. From jax 0.12 on
Pallas warns that it will give Triton up.
"""

import re

import jax
import jax.numpy as jnp

from lmjax.kernels.linear_cross_entropy import _pieces
from lmjax.kernels.linear_cross_entropy import _streamed
from lmjax.kernels.linear_cross_entropy._rule import Losses, Rule


def refuses(*, platform, unembed, tokens, dtype, twice) -> str:
  if platform != 'gpu':
    return f'triton runs on NVIDIA GPUs, this is for a {platform}'
  if twice:
    return 'triton has no second derivative'
  if dtype not in (jnp.bfloat16, jnp.float16, jnp.float32):
    return f'triton takes hidden vectors of bfloat16, float16 or float32, not {jnp.dtype(dtype)}'
  return device() or _pieces.refuses(unembed, tokens)


def device() -> str:
  """Why the GPUs of this process cannot, or ''; a plan for GPUs needs none."""
  try:
    first = jax.local_devices(backend='gpu')[0]
  except RuntimeError:
    return ''
  capability = str(getattr(first, 'compute_capability', ''))
  if not re.fullmatch(r'\d+\.\d+', capability):
    return 'triton runs on NVIDIA GPUs, this is another'
  if tuple(map(int, capability.split('.'))) < (8, 0):
    return f'triton needs an Ampere GPU or a later one, this has the capability {capability}'
  return ''


def linear_cross_entropy(x_BTD, unembed_VD, bias_V, targets_BT, weights_BT, rule: Rule) -> Losses:
  from lmjax.kernels.linear_cross_entropy import triton_kernel  # half a second of imports

  given = x_BTD, unembed_VD, bias_V, targets_BT, weights_BT
  return _streamed.losses(triton_kernel.KERNELS, rule, *given)
