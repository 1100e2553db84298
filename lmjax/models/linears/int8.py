"""A matrix of int8 codes whose product is made in int8; outlier features in the activations apart.

  O = {j : max_i |X_ij| >= tau}                        features, found in each forward pass
  y = s_x s_w (X8 W8) + X[:, O] W[O, :] (+ b)          X8, s_x from X without the features O

Both are symmetric, codes -127 ... 127: W8 = round(W / s_w), X8 = round(X / s_x), summed in int32.
`scaling` says which numbers share a scale:

  vector     s_x of each row of X, s_w of each output
  row        s_x of each row, one s_w
  tensor     one s_x, one s_w
  zeropoint  one s_w, and one s_x with a zero point: X8 = round(X / s_x) + z uses all 255 levels,
             s_x = (max X - min X) / 254; z times the sums of W8 over its inputs is taken off again

tau=None is the plain method of that name, tau=0 the product with the dequantized matrix. The rows
W[O, :] are dequantized from int8, but for `keep` of each matrix that are kept in float16. The
second product has static shapes: all columns but O are zero in it.

A row of X is a token. What else is in the batch, padding too, decides on O (and on s_x of tensor
and zeropoint), so that a score depends on the batch a little. Nothing here is trained but the bias.

Dettmers et al., 2022 (arXiv:2208.07339): vector-wise, tau = 6.
"""

import math
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax.models.linears import _codes
from lmjax.nn import params
from lmjax.parallel import shard
from lmjax.parallel.facts import Fact
from lmjax.registry import register

MOST = 127
TINY = 1e-30  # of a scale: a row of zeros has codes of zero


def rounded(x, steps):
  """int8 codes of x in multiples of `steps`, half to even."""
  return jnp.clip(jnp.round(x / steps), -MOST, MOST).astype(jnp.int8)


def step(x, axis=None):
  """max |x| / 127 over an axis, kept as an axis of 1."""
  return jnp.maximum(jnp.max(jnp.abs(x), axis=axis, keepdims=True), TINY) / MOST


def multiply(x_NI, codes_IO):
  """int8 times int8, summed in int32."""
  return jax.lax.dot_general(
    x_NI, codes_IO, (((1,), (0,)), ((), ())), preferred_element_type=jnp.int32
  )


def quantized_product(x_NI, codes_IO, scale_O, scaling: str):
  """x W^ with x rounded to int8; x float32, W^ = codes * scale (of each output, or one)."""
  if scaling != 'zeropoint':
    steps = step(x_NI, -1 if scaling in ('vector', 'row') else None)
    sums_NO = multiply(rounded(x_NI, steps), codes_IO)
    return sums_NO.astype(jnp.float32) * steps * scale_O
  low, high = jnp.minimum(jnp.min(x_NI), 0.0), jnp.maximum(jnp.max(x_NI), 0.0)
  steps = jnp.maximum(high - low, TINY) / (2 * MOST)
  zero = -MOST - jnp.round(low / steps)
  shifted = jnp.clip(jnp.round(x_NI / steps) + zero, -MOST, MOST).astype(jnp.int8)
  moved_O = zero.astype(jnp.int32) * jnp.sum(codes_IO, axis=0, dtype=jnp.int32)
  return (multiply(shifted, codes_IO) - moved_O).astype(jnp.float32) * steps * scale_O


def product(x_NI, codes_IO, scale_O, *, tau: float | None, scaling: str, rows_IO=None):
  """y (N, O) float32. `rows_IO`: the matrix for outlier features, W^ where it is None."""
  x32 = x_NI.astype(jnp.float32)
  if tau is None:
    return quantized_product(x32, codes_IO, scale_O, scaling)
  outlier_I = jnp.max(jnp.abs(x32), axis=0) >= tau
  if rows_IO is None:
    rows_IO = codes_IO.astype(jnp.float32) * scale_O
  apart_NI = jnp.where(outlier_I, x_NI, 0)
  y = quantized_product(jnp.where(outlier_I, 0.0, x32), codes_IO, scale_O, scaling)
  wide = jax.lax.dot_general(
    apart_NI,
    rows_IO.astype(x_NI.dtype),
    (((1,), (0,)), ((), ())),
    preferred_element_type=jnp.float32,
  )
  return y + wide


@register('linear', trained=False)
class Int8(nn.Module):
  """y = x W (+ b) in int8, outlier features apart."""

  ins: tuple
  outs: tuple
  role: str
  scheme: Any
  bias: bool
  tau: float | None = 6.0
  scaling: Literal['vector', 'row', 'tensor', 'zeropoint'] = 'vector'
  keep: int = 0

  @staticmethod
  def check(tau, keep, **_):
    if tau is not None and not 0 <= tau < math.inf:
      raise ValueError(f'tau={tau}: at least 0, or None for no outliers, is expected')
    if keep < 0:
      raise ValueError(f'keep={keep}: at least 0 is expected')
    if keep and tau is None:
      raise ValueError(f'keep={keep}: 0 is expected where tau=None, which takes no feature apart')

  @nn.compact
  def __call__(self, x):
    in_sizes = tuple(n for _, n in self.ins)
    out_names = tuple(n for n, _ in self.outs)
    assert x.shape[-len(in_sizes) :] == in_sizes, (x.shape, self.ins)
    v = {
      name: _codes.frozen(self, name, shape, dtype, fact)
      for name, (shape, dtype, fact) in self.layout().items()
    }
    # Axes are folded into one whatever lies on which device.
    product = shard.placed(self._product, x.ndim - len(in_sizes), params.act(out_names))
    return params.biased(self, product(x, v))

  @nn.nowrap
  def layout(self) -> dict[str, tuple]:
    """(shape, dtype, fact) of each variable."""
    in_names, in_sizes = zip(*self.ins)
    out_names, out_sizes = zip(*self.outs)
    per_output = self.scaling == 'vector'
    out = dict(
      codes=(in_sizes + out_sizes, jnp.int8, Fact(in_names + out_names, in_names, self.role)),
      scale=(
        out_sizes if per_output else (1,) * len(out_sizes),
        jnp.float32,
        Fact(out_names if per_output else (None,) * len(out_sizes), (), 'other'),
      ),
    )
    if self.keep:
      out['kept'] = (self.keep, *out_sizes), jnp.float16, Fact((None, *out_names), (), 'other')
      out['rows'] = (self.keep,), jnp.int32, Fact((None,), (), 'other')
    return out

  @nn.nowrap
  def stored(self, found: dict) -> dict[str, jax.Array]:
    """Variables from what a quantizer gives: codes (I, O), scale (O,) or (1,); with `keep`: kept
    (keep, O), and rows (keep,) that say of which inputs, I for none.
    """
    return {
      k: jnp.asarray(found[k]).reshape(shape).astype(dtype)
      for k, (shape, dtype, _) in self.layout().items()
    }

  def _product(self, x, v: dict):
    """The product with all axes of each side folded into one."""
    in_sizes, out_sizes = (tuple(n for _, n in side) for side in (self.ins, self.outs))
    fan_in = math.prod(in_sizes)
    codes_IO, scale_O = v['codes'].reshape(fan_in, -1), v['scale'].reshape(-1)
    rows_IO = None
    if self.keep:
      rows_IO = codes_IO.astype(jnp.float32) * scale_O
      kept = v['kept'].reshape(self.keep, -1).astype(jnp.float32)
      rows_IO = rows_IO.at[v['rows']].set(kept, mode='drop')
    y = product(
      x.reshape(-1, fan_in), codes_IO, scale_O, tau=self.tau, scaling=self.scaling, rows_IO=rows_IO
    )
    return y.astype(x.dtype).reshape(*x.shape[: x.ndim - len(in_sizes)], *out_sizes)
