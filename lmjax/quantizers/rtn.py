"""Round to nearest: every number to the nearest point of a uniform grid, with no data.

  w^ = s (q - z), q = clip(round(w / s) + z, 0, 2^bits - 1)

`group` inputs of each output share a scale (128 is usual for weights); None: all inputs of an
output do, or with per='tensor' the whole matrix does. `clip` shrinks the range of each group where
that rounds better. Grids: `_grid.py`. The baseline of every method of its kind; for its use on
language models see Dettmers et al., 2022 (arXiv:2208.07339), and Frantar et al., 2022
(arXiv:2210.17323).

Bits a weight as stored: bits + (16 + bits) / group, without the second bits where symmetric; 3 bits
take 4, 5 to 7 take 8.
"""

import dataclasses
import functools
from typing import Literal

import jax

from lmjax.quantizers import _grid
from lmjax.nn import bits as bits_lib
from lmjax.registry import register

_nearest = functools.partial(jax.jit, static_argnums=(1, 2, 3, 4, 5))(_grid.nearest)


@register('quantizer')
@dataclasses.dataclass(frozen=True)
class Rtn:
  """Rounds to nearest."""

  bits: int
  group: int | None = None
  symmetric: bool = False
  per: Literal['channel', 'tensor'] = 'channel'
  clip: bool = False

  @staticmethod
  def check(bits, group, per, **_):
    bits_lib.checked(bits, group, per)

  @property
  def linear(self) -> str:
    return (
      f'quantized(bits={self.bits}, group={self.group}, symmetric={self.symmetric}, '
      f'per={self.per!r})'
    )

  def quantize(self, kernel_IO, inputs=None) -> dict:
    del inputs
    how = self.bits, self.symmetric, self.group, self.per, self.clip
    return _grid.found(*_nearest(kernel_IO, *how))
