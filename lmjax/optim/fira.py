"""Fira: GaLore that also uses the rest of the gradient, scaled column by column like Adam.

  P as in GaLore, from the gradient's singular vectors every `gap` steps;  R = P^T G,  E = G - P R
  m, v Adam's moments of R;  N = m / (sqrt(v) + eps)
  phi_j = ||N_j|| / (||R_j|| + 1e-8)      over the column j of each, j along the long side
  S = E phi, shortened to ||S|| <= growth (||S_before|| + 1e-8), over one matrix of one layer
  update = (scale P N + S) sqrt(1 - b2^t) / (1 - b1^t)
  G of one layer with its short side first: (short, long), P (short, rank), R and N (rank, long)

Chen et al., 2024 (arXiv:2410.01623) and its public code: b1 = 0.9, b2 = 0.999, eps = 1e-6, scale =
0.25, gap = 200, growth = 1.01. `leaves` says what E leaves out: 'all' of P R, the paper's equation,
or 'scaled', scale P R, as the public code does. Which matrices are projected: see `galore`; the
rest is trained by the same Adam. The limiter compares with the shortened norm of the step before;
the first S that is not 0 passes, which spares matrices whose first gradient is 0 (the public code
would hold them at 1e-8). Decay, on the whole parameter: `fira() | decay(rate=0.1)`.

State: float32; a matrix keeps P, the moments of R and a norm: 4 (short + 2 long) rank + 4 bytes;
the rest 8 bytes a parameter; and a count. Trap: S has the size of Adam's update whatever `scale`
is; with a small rank it is most of the step. The authors' scale at 1B and 7B is 0.0625.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lmjax.optim import _base, _lowrank, _nest, _place, _tensors
from lmjax.registry import register


class State(NamedTuple):
  """basis: P. adam: moments. norm: of S, kept from the last step."""

  count: jax.Array
  basis: Any
  adam: _lowrank.Adam
  norm: Any


@register('optim', moments=False)
def fira(
  rank: int = 128,
  gap: int = 200,
  scale: float = 0.25,
  growth: float = 1.01,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-6,
  leaves: Literal['all', 'scaled'] = 'all',
  *,
  facts,
) -> optax.GradientTransformationExtraArgs:
  """Fira's direction; ValueError for rank or gap below 1, growth below 1, scale or eps not above 0,
  b1, b2 outside [0, 1), an unknown `leaves`.
  """
  _base.require(rank >= 1, 'fira.rank', rank, 'a number of at least 1')
  _base.require(gap >= 1, 'fira.gap', gap, 'a number of at least 1')
  _base.positive('fira.scale', scale)
  _base.require(1 <= growth < jnp.inf, 'fira.growth', growth, 'a finite number of at least 1')
  _base.decay_rate('fira.b1', b1)
  _base.decay_rate('fira.b2', b2)
  _base.positive('fira.eps', eps)
  _base.require(leaves in ('all', 'scaled'), 'fira.leaves', leaves, "'all' or 'scaled'")

  def init(params):
    basis = _lowrank.init_basis(facts, params, rank)
    adam, norm = (f(facts, params, rank) for f in (_lowrank.init_adam, _lowrank.init_norms))
    return State(jnp.zeros((), jnp.int32), basis, adam, norm)

  def update(updates, state, params):
    count = optax.safe_increment(state.count)
    basis = _lowrank.refresh(facts, updates, state.basis, rank, state.count % gap == 0)
    low = _lowrank.project_all(facts, updates, basis, rank)
    scaled, adam = _lowrank.adam(state.adam, low, _lowrank.which(facts, updates, rank), b1, b2, eps)
    factor = _lowrank.unbias(b1, b2, count)

    def one(fact, g, r, n, p, last):
      if not _lowrank.is_low(fact, g, rank):
        return factor * n, ()
      s, whole = _lowrank.short_first(fact, g)
      rest = s - (1.0 if leaves == 'all' else scale) * _lowrank.back(p, r)
      phi = _lowrank.norm(n, -2) / (_lowrank.norm(r, -2) + 1e-8)
      rest, kept = _lowrank.limit_growth(rest * phi, last, growth)
      return whole(factor * (scale * _lowrank.back(p, n) + rest)), _place.everywhere(kept)

    out = _tensors.each(one, facts, updates, low, scaled, basis, state.norm)
    pick = lambda i: _nest.pick(updates, out, i)
    return pick(0), State(count, basis, adam, pick(1))

  return _base.in_float32(optax.GradientTransformationExtraArgs(init, _place.automatic(update)))
