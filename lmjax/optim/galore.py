"""GaLore: another optimizer, run on gradients projected to their leading singular directions.

  every `gap` steps, the first included:  U S V^T = svd(G),  P = U[:, :rank]
  R = P^T G        N = inner's update for R        update = scale P N
  G of one layer with its short side first: (short, long), P (short, rank), R and N (rank, long)

Zhao et al., 2024 (arXiv:2403.03507) and its public code; scale = 0.25, gap = 200. Projected are the
matrices inside layers (roles hidden and residual), each layer and expert by itself, whose short
side is at least `rank`; all else (embeddings, unembedding, positions, gains, biases) goes through
`inner` as it is, with the same rate. The paper takes a rank of a quarter of the width, a rate of
0.01, no decay; decay, if any, acts on the whole parameter: `galore() | decay(rate=0.1)`. Moments
are neither turned nor reset when P changes.

`inner` is a part or a chain; it sees R with facts of its own, and P^T W as the parameter. The
paper's is Adam with b2 = 0.999; its eps = 1e-6 is added to a root of v whose bias is left in, ours
to the corrected root: the first steps are less damped here. `eight_bit(inner=adam())` gives the
8-bit form.

State: P, short x rank, and inner's for R: with Adam 4 (short + 2 long) rank bytes a matrix instead
of 8 short x long, and a count. P is computed in float32 from the gradient of one batch; a singular
value decomposition of all layers takes its time: once in `gap` steps, on every device of a mesh.
Traps: the update's rank is at most `rank` between refreshes; `rank` is in absolute units, so that
it does not follow the width.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lmjax.optim import _base, _groups, _lowrank, _nest, _place, _tensors
from lmjax.registry import register


class State(NamedTuple):
  """count: updates made. basis: P where a matrix is projected, else (). inner: inner's."""

  count: jax.Array
  basis: Any
  inner: Any


@register('optim', moments=False)
def galore(
  inner: _nest.Inner = 'adam(b2=0.999, eps=1e-6)',
  rank: int = 128,
  gap: int = 200,
  scale: float = 0.25,
  *,
  facts,
) -> optax.GradientTransformationExtraArgs:
  """GaLore around `inner`; ValueError for rank or gap below 1, scale not above 0, and an inner part
  that owns its learning rate or needs more than gradients and parameters.
  """
  _base.require(rank >= 1, 'galore.rank', rank, 'a number of at least 1')
  _base.require(gap >= 1, 'galore.gap', gap, 'a number of at least 1')
  _base.positive('galore.scale', scale)
  _nest.check('galore.inner', inner, passes_on=False)
  _groups.build(inner)  # its own arguments are refused now, not when the parameters come

  def is_low(fact, x):
    return _lowrank.is_low(fact, x, rank)

  def inside(params):
    fact = lambda fact, x: _lowrank.low_fact(fact, x) if is_low(fact, x) else fact
    return _groups.build(_nest.with_facts(inner, _tensors.each(fact, facts, params)))

  def laid(state, params):
    """Inner's state, on every device what belongs to a projected matrix."""
    low = jax.tree_util.tree_leaves_with_path(_lowrank.which(facts, params, rank))
    known = {path: low for path, low in low}
    whole = lambda path, x: _place.everywhere(x) if _nest.owner(path, known) else x
    return jax.tree_util.tree_map_with_path(whole, state)

  def init(params):
    def low(fact, x):
      return _lowrank.zeros(_lowrank.low_shape(fact, x, rank)) if is_low(fact, x) else x

    basis = _lowrank.init_basis(facts, params, rank)
    state = inside(params).init(_tensors.each(low, facts, params))
    return State(jnp.zeros((), jnp.int32), basis, laid(state, params))

  def update(updates, state, params):
    basis = _lowrank.refresh(facts, updates, state.basis, rank, state.count % gap == 0)
    low = _lowrank.project_all(facts, updates, basis, rank)
    low_params = None if params is None else _lowrank.project_all(facts, params, basis, rank)
    low, new = inside(updates).update(low, state.inner, low_params)

    def full(fact, g, n, p):
      if not is_low(fact, g):
        return n
      return _lowrank.short_first(fact, g)[1](scale * _lowrank.back(p, n))

    out = _tensors.each(full, facts, updates, low, basis)
    return out, State(optax.safe_increment(state.count), basis, laid(new, updates))

  return _base.in_float32(optax.GradientTransformationExtraArgs(init, _place.automatic(update)))
