"""A full matrix: y = x W (+ b).

W has the axes ins + outs. Source of the default: every Transformer since Vaswani et al., 2017
(arXiv:1706.03762).
"""

from typing import Any

import flax.linen as nn

from lmjax.nn import params
from lmjax.parallel.facts import Fact
from lmjax.registry import register


@register('linear')
class Dense(nn.Module):
  """y = x W (+ b)."""

  ins: tuple
  outs: tuple
  role: str
  scheme: Any
  bias: bool

  @nn.compact
  def __call__(self, x):
    in_names, in_sizes = zip(*self.ins)
    out_names, out_sizes = zip(*self.outs)
    assert x.shape[-len(in_sizes) :] == in_sizes, (x.shape, self.ins)
    fact = Fact(in_names + out_names, in_names, self.role)
    kernel = params.param(self, 'kernel', in_sizes + out_sizes, fact, self.scheme)
    return params.biased(self, params.product(x, kernel, fact.names, len(in_sizes)))
