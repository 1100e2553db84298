"""APOLLO: the raw gradient, scaled by how much Adam scales a random projection of it.

  P (short, rank), entries normal of variance 1 / rank, drawn anew every `gap` steps;  R = P^T G
  m, v Adam's moments of R;  N = m / (sqrt(v) + eps)
  s_j = ||N_j|| / (||R_j|| + 1e-8)     for each column j, j along the long side ('channel'),
  s   = ||N|| / (||R|| + 1e-8)         for the whole matrix ('tensor')
  U = G s, shortened to ||U|| <= growth (||U_before|| + 1e-8), over one matrix of one layer
  update = sqrt(alpha) U sqrt(1 - b2^t) / (1 - b1^t)
  G of one layer with its short side first: (short, long), R and N (rank, long)

Zhu et al., 2024 (arXiv:2412.05270) and its public code: b1 = 0.9, b2 = 0.999, eps = 1e-6, gap =
200, growth = 1.01; rank a quarter of the width, rate 0.01, no decay. APOLLO-Mini is `apollo(rank=1,
scaling="tensor", alpha=128.0)`. That the factor is the root of alpha is the public code's. The
projected part of the gradient is shorter than Adam's by about sqrt(rank / short), which alpha makes
up for. Which matrices are projected: see `galore`; the rest is trained by the same Adam. The first
U that is not 0 passes the limiter; a tiny one (1e-9, say) holds the matrix there for hundreds of
steps. Decay: `apollo() | decay(rate=0.1)`.

P is never stored: it follows from `seed` and the count, the same on every device and in every run.
The public code draws one for each tensor; here all tensors of one short side share it, so that
stacked and single layers train alike (what holds of a random projection holds for each tensor).

State: float32; a matrix keeps the moments of R and a norm, 8 rank x long + 4 bytes; the rest 8
bytes a parameter; and a count. No decomposition.
"""

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lmjax.optim import _base, _lowrank, _nest, _place, _tensors
from lmjax.registry import register


class State(NamedTuple):
  """adam: moments. norm: of U, kept from the last step."""

  count: jax.Array
  adam: _lowrank.Adam
  norm: Any


def projection(seed: int, number, short: int, rank: int):
  """P, the `number`-th since the start, of this seed; (short, rank)."""
  key = jax.random.fold_in(jax.random.key(seed, impl='threefry2x32'), number)
  return jax.random.normal(key, (short, rank)) / math.sqrt(rank)


@register('optim')
def apollo(
  rank: int = 128,
  scaling: Literal['channel', 'tensor'] = 'channel',
  alpha: float = 1.0,
  gap: int = 200,
  growth: float = 1.01,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-6,
  seed: int = 0,
  *,
  facts,
) -> optax.GradientTransformationExtraArgs:
  """APOLLO's direction; ValueError for rank or gap below 1, growth below 1, alpha or eps not above
  0, b1, b2 outside [0, 1), an unknown scaling, a negative seed.
  """
  _base.require(rank >= 1, 'apollo.rank', rank, 'a number of at least 1')
  known = ('channel', 'tensor')
  _base.require(scaling in known, 'apollo.scaling', scaling, "'channel' or 'tensor'")
  _base.positive('apollo.alpha', alpha)
  _base.require(gap >= 1, 'apollo.gap', gap, 'a number of at least 1')
  _base.require(1 <= growth < math.inf, 'apollo.growth', growth, 'a finite number of at least 1')
  _base.decay_rate('apollo.b1', b1)
  _base.decay_rate('apollo.b2', b2)
  _base.positive('apollo.eps', eps)
  _base.require(seed >= 0, 'apollo.seed', seed, 'a number of at least 0')
  axis = -2 if scaling == 'channel' else (-2, -1)

  def bases(updates, number):
    drawn: dict[int, jax.Array] = {}

    def one(fact, g):
      short = min(fact.fans(g.shape))
      if not _lowrank.is_low(fact, g, rank):
        return ()
      if short not in drawn:
        drawn[short] = projection(seed, number, short, rank)
      return drawn[short]

    return _tensors.each(one, facts, updates)

  def init(params):
    adam, norm = (f(facts, params, rank) for f in (_lowrank.init_adam, _lowrank.init_norms))
    return State(jnp.zeros((), jnp.int32), adam, norm)

  def update(updates, state, params):
    count = optax.safe_increment(state.count)
    low = _lowrank.project_all(facts, updates, bases(updates, state.count // gap), rank)
    scaled, adam = _lowrank.adam(state.adam, low, _lowrank.which(facts, updates, rank), b1, b2, eps)
    factor = _lowrank.unbias(b1, b2, count)

    def one(fact, g, r, n, last):
      if not _lowrank.is_low(fact, g, rank):
        return factor * n, ()
      s, whole = _lowrank.short_first(fact, g)
      s = s * (_lowrank.norm(n, axis) / (_lowrank.norm(r, axis) + 1e-8))
      s, kept = _lowrank.limit_growth(s, last, growth)
      return whole(factor * math.sqrt(alpha) * s), _place.everywhere(kept)

    out = _tensors.each(one, facts, updates, low, scaled, state.norm)
    pick = lambda i: _nest.pick(updates, out, i)
    return pick(0), State(count, adam, pick(1))

  return _base.in_float32(optax.GradientTransformationExtraArgs(init, _place.automatic(update)))
