"""A mixer with a bias on each map into it, and none on the one that leads back to the stream.

  q = x W_q + b_q,  k = x W_k + b_k,  v = x W_v + b_v,  y = attention(q, k, v) W_o

for inner=gqa(...), as Qwen 2 has it (2024, arXiv:2407.10671). `gqa(bias=True)` has a fourth bias
behind W_o. All else is the inner mixer's, whose own argument `bias` does not count.
"""

import dataclasses
from typing import Annotated

import flax.linen as nn

from lmjax import kinds
from lmjax.registry import Part, register


@dataclasses.dataclass(frozen=True)
class Biased:
  """A linear part, with biases where it does not write to the stream."""

  part: Part

  def __call__(self, **args):
    return self.part(**{**args, 'bias': args['role'] != 'residual'})


def inner_fact(key: str):
  return lambda args: args['inner'].fact(key)


@register('mixer', **{key: inner_fact(key) for key in kinds.KINDS['mixer'].facts})
class QkvBias(nn.Module):
  """`inner`, with biases on the way in."""

  inner: Annotated[Part, 'mixer'] = 'gqa()'

  @nn.nowrap
  def init_cache(self, kind, batch, length, width, dtype):
    return self.inner(parent=None).init_cache(kind, batch, length, width, dtype)

  @nn.nowrap
  def mixing_flops(self, width, length):
    return self.inner(parent=None).mixing_flops(width, length)

  @nn.compact
  def __call__(self, x_BTD, ctx, cache=None):
    scheme = dataclasses.replace(ctx.scheme, linear=Biased(ctx.scheme.linear))
    return self.inner(name='inner')(x_BTD, ctx.replace(scheme=scheme), cache)
