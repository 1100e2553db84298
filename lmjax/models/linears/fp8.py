"""A full matrix whose products are made in 8-bit floats.

  x8 = e4m3(x / s_x)    W8 = e4m3(W / s_W)    y = s_x s_W (x8 W8) (+ b)
  dx = s_g s_W (g8 W8^T)    dW = s_g s_x (x8^T g8),    g8 of the gradient in e5m2

s = max |.| / the largest number of the type, taken in each step: of each row of x or g and each
output of W, or with scaling='tensor' of the whole. The scale of what is kept from the forward pass
goes into g before g is rounded, so that x8 and W8 serve twice. Sums, W itself and its update are as
in a full matrix. Made by qwix (github.com/google/qwix), extra [fp8].

Error: e4m3 has 3 bits behind the leading one, so a number is off by 2.6 % (rms), a product of
Gaussian rows by 3.7 %; e5m2 has 2, and gradients are off by 5.5 %. `gradients=None` leaves the
backward pass alone, from operands that are not rounded. The unembedding and attention are no
linear parts and stay as they are.

Needs hardware with such products to pay: NVIDIA from Ada and Hopper on, TPU v7. Others convert to a
wider type first, with the same result. bfloat16 beside it needs Ampere or TPUs.

Formats and their use by pass: Micikevicius et al., 2022 (arXiv:2209.05433).
"""

from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp

from lmjax import kinds
from lmjax.nn import params
from lmjax.parallel import shard
from lmjax.parallel.facts import Fact
from lmjax.registry import register

TYPES = dict(e4m3=jnp.float8_e4m3fn, e5m2=jnp.float8_e5m2)


@register('linear', error=0.08)
class Fp8(nn.Module):
  """y = x W (+ b), multiplied in 8-bit floats."""

  ins: tuple
  outs: tuple
  role: str
  scheme: Any
  bias: bool
  gradients: Literal['e5m2', 'e4m3'] | None = 'e5m2'
  scaling: Literal['channel', 'tensor'] = 'channel'

  @staticmethod
  def check(**_):
    _qwix()

  @nn.compact
  def __call__(self, x):
    in_names, in_sizes = zip(*self.ins)
    out_names, out_sizes = zip(*self.outs)
    assert x.shape[-len(in_sizes) :] == in_sizes, (x.shape, self.ins)
    fact = Fact(in_names + out_names, in_names, self.role)
    kernel = params.param(self, 'kernel', in_sizes + out_sizes, fact, self.scheme)
    kernel = shard.gather(kernel.astype(x.dtype), fact.names)
    product = shard.placed(self._product, x.ndim - len(in_sizes), params.act(out_names))
    return params.biased(self, product(x, kernel))

  @nn.nowrap
  def _product(self, x, kernel):
    qwix, n = _qwix(), len(self.ins)
    rule = qwix.QtRule(
      weight_qtype=TYPES['e4m3'],
      act_qtype=TYPES['e4m3'],
      bwd_qtype=self.gradients and TYPES[self.gradients],
      disable_channelwise_axes=self.scaling == 'tensor',
    )
    dims = ((tuple(range(x.ndim - n, x.ndim)), tuple(range(n))), ((), ()))
    return qwix.QtProvider([rule]).dot_general(x, kernel, dims).astype(x.dtype)


def _qwix():
  try:
    import qwix
  except ImportError as e:
    raise kinds.Unsupported(f"linear fp8 needs {e.name}: pip install 'lmjax[fp8]'") from None
  return qwix
