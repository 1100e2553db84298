"""Mix-LN: the first layers are post-norm, the others pre-norm.

  layers 1 ... floor(alpha depth):  x <- norm(x + f(x))
  the others:                       x <- x + f(norm(x))

Li et al., 2024 (arXiv:2412.13795), alpha = 0.25: gradients are small in the deep layers of a
pre-norm stack and in the early ones of a post-norm stack; the mixture evens them out. Needs a final
norm, as `pre` does; parameters are those of either. Which of the two a layer is follows from its
depth, a scanned input, so that all layers stay one scan: each norm is computed at both places and
one of the two is taken.
"""

import math

import flax.linen as nn
import jax.numpy as jnp

from lmjax.models.residuals import _wiring
from lmjax.nn.dropout import dropout
from lmjax.registry import register


@register('residual')
class MixLn(_wiring.Layer):
  """norm(x + f(x)) in the first alpha of the layers, x + f(norm(x)) in the others."""

  depth: int
  alpha: float = 0.25
  dropout: float = 0.0

  @staticmethod
  def check(alpha, **more):
    _wiring.Layer.check(**more)
    if not 0 <= alpha <= 1:
      raise ValueError(f'alpha={alpha}: a share of the layers, from 0 to 1, is expected')

  @nn.compact
  def __call__(self, x, ctx, cache=None):
    drop = lambda y: dropout(self, y, self.dropout, ctx)
    # 0.29 x 100 layers are 29, though the product of the floats lies below.
    post = ctx.depth < math.floor(self.alpha * self.depth + 1e-9)
    before = lambda norm, x: jnp.where(post, x, norm(x, ctx))
    behind = lambda norm, x: jnp.where(post, norm(x, ctx), x)

    norm = self.norm(name='norm_mixer')
    y, cache, mixed = self.mix(before(norm, x), ctx, cache)
    x = _wiring.place(behind(norm, x + drop(y)))
    norm = self.norm(name='norm_ffn')
    y, fed = self.feed(before(norm, x), ctx)
    return _wiring.place(behind(norm, x + drop(y))), cache, _wiring.join(mixed, fed)
