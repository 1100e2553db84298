"""The product with a matrix that is kept as codes of few bits: y = x W^, W^ = s (q - z).

  mosaic  TPUs, one device, few rows: codes come from main memory once, W^ never reaches it
  xla     everything, anywhere: W^ as the linear part writes it, then a product

Compiled for a TPU, `xla` makes W^ inside of the product where a code has a byte and an output one
scale. Where codes share bytes, or inputs fall into groups, the unpacked codes and the scale of
every element go through main memory first, in float32 (`experiments/perf/fusions.py`).
"""

import math
from typing import Callable, NamedTuple

import jax

from lmjax.kernels import choice
from lmjax.kernels.choice import Implementation
from lmjax.kernels.quant_matmul import mosaic


class Layout(NamedTuple):
  """How codes lie: sizes of the input and output axes, the axis that is packed, codes in a byte;
  middle: z where there is no variable for it.
  """

  ins: tuple[int, ...]
  outs: tuple[int, ...]
  axis: int
  per_byte: int
  middle: float


def _xla(x, variables, layout, whole):
  del layout
  return whole(x, variables)


IMPLEMENTATIONS = {
  'mosaic': Implementation(mosaic.product, mosaic.refuses),
  'xla': Implementation(_xla),
}


def quant_matmul(x, variables: dict, layout: Layout, whole: Callable, implementation=None):
  """y (..., outs...) in the dtype of x.

  Args:
    x: (..., ins...).
    variables: codes uint8; scale (groups, outs...) or (1, ...); zero uint8, like scale and packed
      along its last axis, or none.
    layout: of the codes.
    whole: (x, variables) -> y by way of W^; its gradient is that of every implementation.
    implementation: a name in IMPLEMENTATIONS; None for what config.kernels.quant_matmul says.
  """
  rows = math.prod(x.shape[: x.ndim - len(layout.ins)])
  shapes = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in variables.items()}
  facts = dict(rows=rows, dtype=x.dtype, variables=shapes, layout=layout)
  run = choice.pick('quant_matmul', IMPLEMENTATIONS, implementation, **facts)
  return run(x, variables, layout, whole)
