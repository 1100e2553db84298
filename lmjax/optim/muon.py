"""Muon: momentum whose singular values are driven to about 1 by a Newton-Schulz iteration.

  m <- momentum m + (1 - momentum) g        x = (1 - momentum) g + momentum m  (nesterov), else m
  x <- x / (||x||_F + 1e-7), then `steps` times, rows <= columns:
    A = x x^T,   x <- 3.4445 x + (-4.7750 A + 2.0315 A^2) x
  update = factor x
    rms:       0.2 sqrt(max(in, out))
    spectral:  sqrt(max(1, out / in))

Jordan et al., 2024 (https://kellerjordan.github.io/posts/muon); `rms` is Liu et al., 2025
(arXiv:2502.16982). Five steps leave singular values between about 0.7 and 1.2, not at 1; ones below
1e-3 of the norm stay smaller. `spectral` is the original: a learning rate of 0.02 to 0.05, in units
of the spectral norm. `rms` gives updates the RMS of Adam's, so that Adam's learning rate and decay
serve: the default, since one rate serves all parts here. Decay: `muon() | decay(rate=0.1)`.

For matrices inside layers: `split(matrix=muon(), rest=adam())`. What facts do not call a matrix is
refused; embeddings are taken (the ablation) but meant for the rest. The matrix of a parameter is
(contracted axes, other axes), for each layer and expert by itself; all heads of a projection are
one matrix. Optax's Muon is the same but for a bias correction of the momentum, which the original
has not (it changes the weights of Nesterov's sum in the first steps), and cannot run on an explicit
mesh.

On a mesh each device iterates whole matrices: stacked layers are shared out over its axes, so far
as they divide; what is left is done everywhere. State: m in float32, 4 bytes a parameter. Work: at
most `steps` x min(in, out) / tokens of the step's own FLOPs, below 1 % at usual batches. Trap: with
`mup` the parameterization's factors of the rate come on top, and they are Adam's.
"""

import math
from typing import Any, Literal, NamedTuple

import jax
from jax.sharding import AxisType, PartitionSpec as P
import jax.numpy as jnp
import optax

from lmjax.optim import _base, _tensors
from lmjax.parallel import facts as facts_lib
from lmjax.parallel import shard
from lmjax.registry import register

A, B, C = 3.4445, -4.7750, 2.0315  # a steep slope at 0, at the price of an uneven band about 1


class State(NamedTuple):
  m: Any


@register('optim')
def muon(
  momentum: float = 0.95,
  nesterov: bool = True,
  steps: int = 5,
  scale: Literal['rms', 'spectral'] = 'rms',
  *,
  facts,
) -> optax.GradientTransformationExtraArgs:
  """Muon's direction; ValueError for momentum outside [0, 1), steps below 1, an unknown scale, and,
  when it is given parameters, for what is no matrix.
  """
  _base.decay_rate('muon.momentum', momentum)
  _base.require(steps >= 1, 'muon.steps', steps, 'a number of at least 1')
  _base.require(scale in ('rms', 'spectral'), 'muon.scale', scale, "'rms' or 'spectral'")

  def init(params):
    for path, fact in jax.tree_util.tree_leaves_with_path(_tensors.each(_fact, facts, params)):
      if not fact.is_matrix:
        raise ValueError(
          f'config.optim: muon was given {"/".join(k.key for k in path)}, which is no matrix; give '
          'it to another part, as in split(matrix=muon(), rest=adam())'
        )
    return State(_tensors.zeros(params))

  def update(updates, state, params=None, **extra):
    m = _tensors.mix(momentum, state.m, updates)
    m = _tensors.each(lambda fact, m: shard.shard(m, *fact.names), facts, m)
    x = _tensors.mix(momentum, m, updates) if nesterov else m
    one = lambda fact, x: _update(fact, x, steps, scale)
    return _tensors.each(one, facts, x), State(m)

  return _base.in_float32(optax.GradientTransformationExtraArgs(init, update))


def _fact(fact, _):
  return fact


def _update(fact, x, steps: int, scale: str):
  fan_in, fan_out = fact.fans(x.shape)
  factor = (
    0.2 * math.sqrt(max(fan_in, fan_out))
    if scale == 'rms'
    else math.sqrt(max(1.0, fan_out / fan_in))
  )
  y, back = facts_lib.as_matrix(_share_out(fact, x), fact)
  # Both ends are placed: else the partitioner cuts the matrices within the loop.
  return shard.shard(_share_out(fact, back(factor * orthogonalize(y, steps))), *fact.names)


def orthogonalize(x, steps: int):
  """Newton-Schulz over the last two axes of (..., rows, columns)."""
  tall = x.shape[-2] > x.shape[-1]
  x = x.mT if tall else x
  x = x / (jnp.sqrt(jnp.sum(jnp.square(x), axis=(-2, -1), keepdims=True)) + 1e-7)

  def once(_, x):
    a = x @ x.mT
    return A * x + (B * a + C * (a @ a)) @ x

  x = jax.lax.fori_loop(0, steps, once, x)
  return x.mT if tall else x


def _share_out(fact, x):
  """Places x so that every device holds whole matrices, stacked ones shared out over the mesh."""
  mesh = shard.mesh()
  if mesh.empty:
    return x
  free = [a for a, t in zip(mesh.axis_names, mesh.axis_types) if t != AxisType.Manual]
  spec: list = [None] * x.ndim
  for i in fact.axes()[0]:
    size, taken = x.shape[i], []
    for a in list(free):
      if size % mesh.shape[a] == 0:
        size //= mesh.shape[a]
        free.remove(a)
        taken.append(a)
    spec[i] = tuple(taken) or None
  place = jax.sharding.reshard if shard.is_explicit() else jax.lax.with_sharding_constraint
  return place(x, P(*spec))
