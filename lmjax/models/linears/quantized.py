"""A matrix kept as codes of few bits: y = x W^ (+ b), W^ = s (q - z), made in the product.

  codes  uint8, the axes ins + outs, 4 codes a byte for 2 bits, 2 for 3 and 4 bits, else 1, packed
         along the first axis that every use gathers, else along the last of ins
  scale  float16 (groups, outs): of each group of inputs and output (`group` inputs, or all where
         it is None); (1, 1) with per='tensor'
  zero   uint8, shaped like scale and packed along its last axis; z = 2^(bits - 1) where symmetric

Activations stay as they are. Only use: nothing here is trained but the bias. Made by
`python -m lmjax.quantize` from a model whose linear part is a full matrix.

On a mesh codes and scales lie as the matrix would; W^ is made by the partitioner.
"""

import math
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax.kernels import quant_matmul
from lmjax.models.linears import _codes
from lmjax.nn import bits as bits_lib
from lmjax.nn import params
from lmjax.parallel import shard
from lmjax.parallel.facts import Fact
from lmjax.registry import register


@register('linear', trained=False)
class Quantized(nn.Module):
  """y = x (s (q - z)) (+ b)."""

  ins: tuple
  outs: tuple
  role: str
  scheme: Any
  bias: bool
  bits: int
  group: int | None = None
  symmetric: bool = False
  per: Literal['channel', 'tensor'] = 'channel'

  @staticmethod
  def check(bits, group, per, **_):
    bits_lib.checked(bits, group, per)

  @nn.compact
  def __call__(self, x):
    in_names, in_sizes = zip(*self.ins)
    out_names, _ = zip(*self.outs)
    assert x.shape[-len(in_sizes) :] == in_sizes, (x.shape, self.ins)
    variables = {
      name: _codes.frozen(self, name, shape, dtype, fact)
      for name, (shape, dtype, fact) in self.layout().items()
    }

    def whole(x, variables):
      kernel = self.matrix(variables, x.dtype)
      return params.contract(x, kernel, len(in_sizes), params.act(out_names))

    return params.biased(self, quant_matmul.quant_matmul(x, variables, self._lies(), whole))

  @nn.nowrap
  def layout(self) -> dict[str, tuple]:
    """(shape, dtype, fact) of each variable. Raises ValueError where groups do not divide."""
    in_names, in_sizes = zip(*self.ins)
    out_names, out_sizes = zip(*self.outs)
    fan_in = math.prod(in_sizes)
    if fan_in % (self.group or fan_in):
      raise ValueError(
        f'config.model.linear: quantized.group={self.group} does not divide the {fan_in} inputs of '
        f'{_codes.where(self)}'
      )
    shape = list(in_sizes + out_sizes)
    shape[self.packed_axis] = _codes.packed_size(shape[self.packed_axis], self.bits)
    scales = (fan_in // (self.group or fan_in), *out_sizes)
    names = (None, *out_names)
    if self.per == 'tensor':
      scales, names = (1,) * len(scales), (None,) * len(scales)
    fact = Fact(names, (), 'other')
    out = dict(
      codes=(tuple(shape), jnp.uint8, Fact(in_names + out_names, in_names, self.role)),
      scale=(scales, jnp.float16, fact),
    )
    if not self.symmetric:
      zeros = (*scales[:-1], _codes.packed_size(scales[-1], self.bits))
      out['zero'] = zeros, jnp.uint8, fact
    return out

  @property
  def packed_axis(self) -> int:
    names = [n for n, _ in self.ins + self.outs]
    gathered = (i for i, n in enumerate(names) if n in shard.GATHERED)
    return next(gathered, len(self.ins) - 1)

  @nn.nowrap
  def _lies(self) -> quant_matmul.Layout:
    ins, outs = (tuple(n for _, n in side) for side in (self.ins, self.outs))
    middle = 2.0 ** (self.bits - 1)
    return quant_matmul.Layout(ins, outs, self.packed_axis, _codes.per_byte(self.bits), middle)

  @nn.nowrap
  def stored(self, found: dict) -> dict[str, jax.Array]:
    """Variables from what a quantizer gives: codes (I, O), scale and zero (groups, O) or (1, 1)."""
    sizes = tuple(n for _, n in self.ins + self.outs)
    layout = self.layout()
    out = dict(
      codes=_codes.pack(found['codes'].reshape(sizes), self.bits, self.packed_axis),
      scale=found['scale'].reshape(layout['scale'][0]).astype(jnp.float16),
    )
    if not self.symmetric:
      zeros = found['zero'].reshape(layout['scale'][0])
      out['zero'] = _codes.pack(zeros, self.bits, -1)
    assert {k: (v.shape, v.dtype) for k, v in out.items()} == {
      k: (shape, dtype) for k, (shape, dtype, _) in layout.items()
    }
    return out

  @nn.nowrap
  def matrix(self, variables: dict, dtype=jnp.float32):
    """W^ with the axes ins + outs, placed as a full matrix would be where it is used."""
    names = tuple(n for n, _ in self.ins + self.outs)
    make = lambda v: self._matrix(v).astype(dtype)
    if shard.is_explicit():  # codes are folded into groups across sharded axes
      return shard.automatic(make, shard.spec(names, gathered=True))(variables)
    return shard.gather(make(variables), names)

  def _matrix(self, variables: dict):
    sizes = tuple(n for _, n in self.ins + self.outs)
    axis, scale = self.packed_axis, variables['scale'].astype(jnp.float32)
    codes = _codes.unpack(variables['codes'], self.bits, axis, sizes[axis])
    zero = 2.0 ** (self.bits - 1)
    if not self.symmetric:
      zero = _codes.unpack(variables['zero'], self.bits, -1, scale.shape[-1])
      zero = zero.astype(jnp.float32)[:, None]
    grouped = codes.astype(jnp.float32).reshape(scale.shape[0], -1, *sizes[len(self.ins) :])
    return (scale[:, None] * (grouped - zero)).reshape(sizes)
