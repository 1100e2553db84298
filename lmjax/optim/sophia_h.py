"""Sophia-H: momentum over a running Hessian diagonal, each coordinate clipped to the unit.

  m <- b1 m + (1 - b1) g
  t = 1, 1 + every, ...:   h <- b2 h + (1 - b2) u (H u),   else h stays
  update = clip(m / max(rho h, eps), -1, 1)

H is the Hessian of the batch's loss on its real labels, u a random probe with one number a
parameter: u (H u) has the mean diag(H) (Hutchinson, 1990), and may be negative, where the step is
the learning rate in the sign's direction. Liu et al., 2023 (arXiv:2305.14342), with the paper's
values; `probe="normal"` is the paper's, `"rademacher"` (signs) has less variance and is exact where
H is diagonal. The forms in which the algorithm is published are told apart in `sophia_g`; early
code also corrected m for its bias. Coupled decay of 0.2 is `sophia_h() | decay(rate=0.2)`.

H u is the gradient of <grad, u>, reverse mode twice, so that kernels with a backward pass of their
own and no forward mode (attention) serve. It costs about two steps, every `every`-th step, on
all rows of the step's batch; `one_in` takes one in so many of them (the paper: 32 of 480).

State: m and h in float32, 8 bytes a parameter, and a count. Metrics: see `_sophia`.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from lmjax.optim import _base, _sophia
from lmjax.parallel import shard
from lmjax.registry import register


@register('optim', needs=('obj_fn', 'rng'))
def sophia_h(
  b1: float = 0.96,
  b2: float = 0.99,
  rho: float = 0.01,
  eps: float = 1e-12,
  every: int = 10,
  one_in: int = 1,
  probe: Literal['normal', 'rademacher'] = 'normal',
):
  """Sophia-H's direction; errors as in `_sophia.sophia`, and for an unknown probe."""
  _base.require(
    probe in ('normal', 'rademacher'), 'sophia_h.probe', probe, "'normal' or 'rademacher'"
  )
  draw = jax.random.normal if probe == 'normal' else jax.random.rademacher

  def estimate(params, extra):
    u = _draws(draw, extra['rng'], params)

    def along(params):
      grads = jax.grad(extra['obj_fn'])(params, one_in=one_in)
      return sum(jnp.sum(g * u) for g, u in zip(jax.tree.leaves(grads), jax.tree.leaves(u)))

    return jax.tree.map(jnp.multiply, u, jax.grad(along)(params))

  return _sophia.sophia('sophia_h', estimate, b1, b2, rho, eps, every, one_in)


def _draws(draw, rng, params):
  """A tree of draws, each placed like its parameter."""
  leaves, tree = jax.tree.flatten(params)

  def one(key, x):
    place = dict(out_sharding=jax.typeof(x).sharding) if shard.is_explicit() else {}
    return draw(key, x.shape, x.dtype, **place)

  keys = jax.random.split(rng, max(len(leaves), 1))
  return tree.unflatten([one(k, x) for k, x in zip(keys, leaves)])
