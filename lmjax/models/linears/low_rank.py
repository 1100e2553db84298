"""A matrix kept as two thin factors: y = (alpha / rank) B (A x) (+ b).

`down` is A with the axes ins + (rank,), `up` is B with (rank,) + outs; the matrix is never formed.
Parameters and FLOPs of a matrix: rank (in + out) instead of in x out. The rank must be below both
sides, else the factors would hold any matrix at a higher price: that is refused, by the matrix's
name.

"Low-Rank" of the benchmark by Glentis et al., 2025 (arXiv:2505.22922), there for every matrix of
attention and feed-forward: alpha = 32, rank a quarter of the width. Alone it falls far behind
full matrices, with restarts much less: see the optimizer part `refactor`.

Both factors start from U(-1/sqrt(fan_in), 1/sqrt(fan_in)), as in the paper, whatever `model.init`
says: a rule for one matrix (0.02 everywhere) makes the product of two far too small, and a factor
1/sqrt(2 N) for residual writers would come in twice. All else follows from facts: role and names
are those of a full matrix, so that rates, decay and sharding treat each factor as a matrix.

On a mesh the axis `rank` is whole, all others lie as in a full matrix; where the contracted axis is
sharded, what is summed over devices is the small A x.

Traps: decay of factors is not decay of their product. alpha and rank are in absolute units, so that
the product shrinks as the rank alone grows; muP's factors are right where both grow with the width.
The factors are fixed up to B M, M^-1 A only, so that their own sizes say nothing.
"""

import math
from typing import Any

import flax.linen as nn

from lmjax.models.linears import _factors
from lmjax.nn import params
from lmjax.parallel import facts
from lmjax.parallel import shard
from lmjax.parallel.facts import Fact
from lmjax.registry import register


@register('linear')
class LowRank(nn.Module):
  """y = (alpha / rank) B (A x) (+ b)."""

  ins: tuple
  outs: tuple
  role: str
  scheme: Any
  bias: bool
  rank: int
  alpha: float = 32.0

  @staticmethod
  def check(rank, alpha):
    if rank < 1:
      raise ValueError(f'rank={rank}: a positive number is expected')
    if not 0 < alpha < math.inf:
      raise ValueError(f'alpha={alpha}: a positive number is expected')

  @nn.compact
  def __call__(self, x):
    in_names, in_sizes = zip(*self.ins)
    out_names, out_sizes = zip(*self.outs)
    assert x.shape[-len(in_sizes) :] == in_sizes, (x.shape, self.ins)
    fan_in, fan_out = math.prod(in_sizes), math.prod(out_sizes)
    _factors.refuse_whole(self.path, 'low_rank', self.rank, fan_in, fan_out)
    down = self.factor('down', (*in_names, 'rank'), (*in_sizes, self.rank), in_names)
    up = self.factor('up', ('rank', *out_names), (self.rank, *out_sizes), ('rank',))
    h = params.contract(x, down, len(in_sizes), ('rank',)) * (self.alpha / self.rank)
    y = params.contract(h, up, 1, params.act(out_names))
    return params.biased(self, y)

  def factor(self, name: str, names: tuple, shape: tuple, inputs: tuple):
    """One factor as its use needs it on a mesh."""
    fact = Fact(names, inputs, self.role)
    init = facts.boxed(_factors.uniform(fact.fans(shape)[0]), fact)
    return shard.gather(self.param(name, init, shape, self.scheme.param_dtype), names)
