"""Sophia-G: momentum over a running Gauss-Newton diagonal, each coordinate clipped to the unit.

  m <- b1 m + (1 - b1) g
  t = 1, 1 + every, ...:   h <- b2 h + (1 - b2) B s^2,   else h stays
  update = clip(m / max(rho h, eps), -1, 1)

s is the gradient of the mean cross-entropy over the batch on labels drawn from the model's own
predictions, one independent draw at each predicted position, the inputs being the real tokens, and
B the number of those positions (all predicted tokens of the batch, not its rows). So B s^2 has the
mean diag of the Gauss-Newton matrix (Gauss-Newton-Bartlett). Squares of per-token gradients, of the
training gradient, or a B of rows are other things. Where h is tiny the step is the learning rate in
the sign's direction. Liu et al., 2023 (arXiv:2305.14342).

Defaults are those of the public code for 125M parameters (lr 6e-4 there); rho is 0.08 at 355M. The
same algorithm is published in three forms:

  here, and later versions of the paper:  lr clip(m / max(gamma h, eps), 1)         gamma = rho
  first version:  lr' clip(m / max(h, eps'), rho')     rho = rho', lr = lr' rho', eps = eps' rho'
  public code:    h' = h / B, lr sign(m) min(|m| / (rho B h' + 1e-15), 1)           rho = rho

Neither m nor h is corrected for its bias. The code clips s to a global norm of 1 before squaring
and draws it from the next batch; here it is the step's own batch, one in `one_in` of its rows (the
paper takes 240 of 480, the code all), and s is not clipped. Coupled decay of 0.2 is `sophia_g() |
decay(rate=0.2)`; put `clip()` in front.

Needs the objective's `sample`: the sum of the cross-entropies on drawn labels, constants in the
derivative, and B as its weight. State: m and h in
float32, 8 bytes a parameter, and a count. A renewal costs a forward and a backward pass, about a
tenth of them a step. Metrics: see `_sophia`.
"""

import jax
import jax.numpy as jnp

from lmjax.optim import _sophia
from lmjax.registry import register


@register('optim', needs=('sample_fn', 'rng'))
def sophia_g(
  b1: float = 0.965,
  b2: float = 0.99,
  rho: float = 0.05,
  eps: float = 1e-12,
  every: int = 10,
  one_in: int = 1,
):
  """Sophia-G's direction; errors as in `_sophia.sophia`."""

  def estimate(params, extra):
    def total(params):
      return extra['sample_fn'](params, extra['rng'], one_in=one_in)

    grads, weight = jax.grad(total, has_aux=True)(params)
    # B (grads / B)^2
    return jax.tree.map(lambda g: jnp.square(g) / jnp.maximum(weight, 1.0), grads)

  return _sophia.sophia('sophia_g', estimate, b1, b2, rho, eps, every, one_in)
