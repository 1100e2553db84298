"""The projection of AdamP and SGDP: the radial part of an update is taken out where the loss does
not depend on the length of the weights.

  views of a matrix W of one layer, tried in this order: channels, the vectors w_i that each make
  one output, of length n = in; then the whole layer as one vector, n = in x out
  a view qualifies if  max_i |cos(g_i, w_i)| < delta / sqrt(n),   g the raw gradient
  p_i <- p_i - u_i (u_i . p_i),   u_i = w_i / (||w_i|| + eps),    in the first that does

A gradient of a loss that is the same for all lengths of w is orthogonal to w; momentum is not, and
makes w grow. The channels of an embedding or position table are its rows, as in PyTorch's layout.
The cosine is over max(||g|| ||w||, eps): a vanishing gradient is orthogonal. (PyTorch, which the
public code asks, bounds each norm by eps since version 2; that differs for norms below 1e-8.)
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lmjax.optim import _base, _groups, _nest, _tensors


class State(NamedTuple):
  """direction, decay: of the inner parts. metrics: `projected`, the share of projected tensors
  among the matrices.
  """

  direction: Any
  decay: Any
  metrics: dict[str, jax.Array]


def check(name: str, decay, delta: float, wd_ratio: float, eps: float):
  _base.positive(f'{name}.delta', delta)
  _base.require(0 <= wd_ratio <= 1, f'{name}.wd_ratio', wd_ratio, 'a number from 0 to 1')
  _base.positive(f'{name}.eps', eps)
  if decay is not None:
    _nest.check(f'{name}.decay', decay, passes_on=False)


def dot(x, y, axes):
  return jnp.sum(x * y, axis=tuple(axes), keepdims=True)


def views(fact) -> tuple[list[int], list[int]]:
  """The axes within a channel, and within a layer."""
  _, ins, outs = fact.axes()
  return (outs if fact.role in ('embed', 'position') else ins), ins + outs


def project(fact, g, p, w, delta: float, eps: float):
  """(p without its radial part, whether it was taken out, for each layer)."""
  channel, layer = views(fact)
  other = tuple(i for i in layer if i not in channel)
  length = lambda x, axes: jnp.sqrt(dot(x, x, axes))

  def view(axes):
    size = math.prod(w.shape[i] for i in axes)
    cos = dot(g, w, axes) / jnp.maximum(length(g, axes) * length(w, axes), eps)
    most = jnp.max(jnp.abs(cos), axis=other, keepdims=True)
    u = w / (length(w, axes) + eps)
    return most < delta / math.sqrt(size), p - u * dot(u, p, axes)

  (first, by_channel), (second, by_layer) = view(channel), view(layer)
  return jnp.where(first, by_channel, jnp.where(second, by_layer, p)), first | second


def radial(direction, decay, delta: float, wd_ratio: float, eps: float, facts):
  """`direction` with the projection; what the part `decay` adds is multiplied by wd_ratio where the
  projection acts.
  """
  direction = optax.with_extra_args_support(direction)
  shrink = None if decay is None else _groups.build(decay)

  def init(params):
    start = () if shrink is None else shrink.init(params)
    return State(direction.init(params), start, dict(projected=jnp.zeros(())))

  def update(updates, state, params=None, **extra):
    p, inner = direction.update(updates, state.direction, params, **extra)
    added, shrunk = jax.tree.map(jnp.zeros_like, p), state.decay
    if shrink is not None:
      added, shrunk = shrink.update(added, shrunk, params)

    def one(fact, g, p, w, more):
      if not fact.is_matrix:
        return p + more, ()
      p, acts = project(fact, g, p, w, delta, eps)
      return p + jnp.where(acts, wd_ratio, 1.0) * more, acts

    out = _tensors.each(one, facts, updates, p, params, added)
    share = _tensors.share(_nest.pick(updates, out, 1))
    return _nest.pick(updates, out, 0), State(inner, shrunk, dict(projected=share))

  return _base.in_float32(optax.GradientTransformationExtraArgs(init, update))
