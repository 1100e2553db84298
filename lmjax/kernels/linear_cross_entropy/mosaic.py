"""Pallas kernels for TPUs (Mosaic): tiles of logits stay in the TPU's own memory.

Three kernels: sums over words, tile by tile, with a running maximum; dx, added up over the words;
dW and db, added up over the tokens. Logits are made in each, so that there are five products of
tokens and words where `chunked` has three. What it saves is memory and traffic: no chunk of logits
is written, and dW is written once instead of added to once a chunk.

An operand is cast to the dtype of x and padded to whole tiles before. Operands of bfloat16 or
float32, sums in float32; float32 is multiplied as jax_default_matmul_precision says, of which
Mosaic knows two: the default and the highest.
"""

import jax.numpy as jnp

from lmjax.kernels.linear_cross_entropy import _pieces
from lmjax.kernels.linear_cross_entropy import _streamed
from lmjax.kernels.linear_cross_entropy._rule import Losses, Rule

LANES = 128
TILES = ((1024, 512), (512, 512), (512, 256), (256, 256), (256, 128), (128, 128))
MEMORY = 48 * 2**20  # bytes of tiles; a v5p has 64 MiB


def refuses(*, platform, unembed, tokens, dtype, twice) -> str:
  if platform != 'tpu':
    return f'mosaic runs on TPUs, this is for a {platform}'
  if twice:
    return 'mosaic has no second derivative'
  if dtype not in (jnp.bfloat16, jnp.float32):
    return f'mosaic takes hidden vectors of bfloat16 or float32, not {jnp.dtype(dtype)}'
  if tile(unembed[1], jnp.dtype(dtype).itemsize) is None:
    return f'mosaic takes a width whose tiles fit into {MEMORY:,} bytes, not {unembed[1]:,}'
  return _pieces.refuses(unembed, tokens)


def tile(width: int, item: int) -> tuple[int, int] | None:
  """(tokens or words that stay, words or tokens that pass by) of a tile, the largest that fit: two
  buffers of each operand and of a result in float32, and some tiles of logits.
  """
  width = _streamed.upwards(width, LANES)
  takes = lambda stay, by: 2 * (stay + by) * width * item + 2 * stay * width * 4 + 6 * stay * by * 4
  return next((t for t in TILES if takes(*t) <= MEMORY), None)


def linear_cross_entropy(x_BTD, unembed_VD, bias_V, targets_BT, weights_BT, rule: Rule) -> Losses:
  from lmjax.kernels.linear_cross_entropy import mosaic_kernel  # half a second of imports

  given = x_BTD, unembed_VD, bias_V, targets_BT, weights_BT
  return _streamed.losses(mosaic_kernel.KERNELS, rule, *given)
