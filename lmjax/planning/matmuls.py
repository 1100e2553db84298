"""FLOPs of one instruction of a compiled program: dot, convolution, calls of matrix libraries.

  dot:          2 x entries of the result x contracted sizes
  convolution:  2 x batch x output features x input features of a group x pairs of places of the
                output and of the window that meet an entry of the input (not padding, and not the
                holes of a dilated input)

TPUs turn every matrix product into a convolution: batch axes become spatial ones, of a window as
large as the batch over an input with holes, of which one place each meets an entry. Counting
those pairs gives the FLOPs of the product again.
"""

import functools
import math
import re
from typing import Any

import numpy as np

GEMMS = ('__cublas$', '__cudnn$conv')  # what GPU programs call


def flops(computation: Any, instruction: Any) -> float:
  """FLOPs of one run of this instruction, itself only: a fusion has none, what it calls has."""
  if instruction.opcode in ('dot', 'scaled-dot'):
    return _product(computation, instruction, instruction.integers('lhs_contracting_dims'))
  if instruction.opcode == 'convolution':
    return _convolution(computation, instruction)
  if instruction.opcode == 'custom-call':
    return _call(computation, instruction) or 0.0
  return 0.0


def is_opaque(computation: Any, instruction: Any) -> bool:
  """Whether this is a call of foreign code that does not say what it costs."""
  return instruction.opcode == 'custom-call' and _call(computation, instruction) is None


def target(instruction: Any) -> str:
  """What a custom-call calls."""
  return (instruction.attribute('custom_call_target') or '').strip('"')


def stated(instruction: Any, what: str) -> float | None:
  """flops, transcendentals or bytes_accessed, as a custom-call states them, or None."""
  found = re.search(rf'"cost_estimate":\{{[^}}]*"{what}":"?(\d+)', instruction.attributes)
  return float(found[1]) if found else None


def _call(computation: Any, instruction: Any) -> float | None:
  """FLOPs that a custom-call states or that follow from its shapes."""
  found = stated(instruction, 'flops')
  if found is not None:
    return found
  if not target(instruction).startswith(GEMMS):
    return None
  if 'dim_labels=' in instruction.attributes:
    return _convolution(computation, instruction)
  contracted = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', instruction.attributes)
  if not contracted:
    return None
  return _product(computation, instruction, [int(n) for n in re.findall(r'\d+', contracted[1])])


def _product(computation: Any, instruction: Any, contracted: list[int]) -> float:
  left = computation.operand(instruction).shapes[0].dims
  made = math.prod(instruction.shapes[0].dims)
  return 2.0 * made * math.prod(left[n] for n in contracted)


def _convolution(computation: Any, instruction: Any) -> float:
  labels = re.match(r'(\w+)_(\w+)->(\w+)', instruction.attribute('dim_labels'))
  left, right = (s[0].dims for s in computation.operand_shapes(instruction)[:2])
  out = instruction.shapes[0].dims
  total = 2.0 * out[labels[3].index('b')] * out[labels[3].index('f')] * right[labels[2].index('i')]
  for n, window in enumerate(_windows(instruction)):
    axis = str(n)
    total *= _pairs(left[labels[1].index(axis)], out[labels[3].index(axis)], *window)
  return total


def _windows(instruction: Any) -> list[tuple[int, int, int, int, int]]:
  """(size, stride, padding in front, input dilation, window dilation) of each spatial axis."""
  text = instruction.attribute('window') or ''
  given = {k: v.split('x') for k, v in re.findall(r'(\w+)=([-\dx_]+)', text)}
  ones = ['1'] * len(given.get('size', ()))
  return [
    (int(size), int(stride), int(pad.split('_')[0]), int(holes), int(spread))
    for size, stride, pad, holes, spread in zip(
      given.get('size', ()),
      given.get('stride', ones),
      given.get('pad', ['0_0'] * len(ones)),
      given.get('lhs_dilate', ones),
      given.get('rhs_dilate', ones),
    )
  ]


@functools.lru_cache(maxsize=None)
def _pairs(n: int, out: int, size: int, stride: int, pad: int, holes: int, spread: int) -> int:
  """Pairs (place of the output, place of the window) that meet one of n entries of the input."""
  places = np.arange(out, dtype=np.int64) * stride - pad
  met = 0
  for k in range(size):
    at = places + k * spread
    met += int(np.count_nonzero((at >= 0) & (at <= (n - 1) * holes) & (at % holes == 0)))
  return met
