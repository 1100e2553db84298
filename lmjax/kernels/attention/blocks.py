"""Pieces of attention: a block of queries against a block of keys, forward and backward.

Axes: B rows, T and t queries, S and s keys, H heads of queries, G heads of keys with R heads of
queries each, K head size.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lmjax.kernels.attention.reference import allowed

BLOCK, BLOCKS = 64, 4  # positions in a block, at least; blocks that a row is cut into, at most
NEVER = -2e38  # a hidden logit
FLOOR = -1e38  # the least m, so that a row which sees nothing has p = exp(NEVER - FLOOR) = 0


class Rule(NamedTuple):
  """The static arguments."""

  causal: bool
  window: int | None
  cap: float | None
  scale: float
  aligned: bool

  def pairs(self, steps: int, keys: int):
    """[(queries, [keys])] as spans (start, stop): all keys that a query might see are in the spans
    beside it.
    """
    if not self.aligned or not (self.causal or self.window):
      return [((0, steps), [(0, keys)])]
    n, reach = max(1, min(BLOCKS, steps // BLOCK)), self.window or steps
    ends = [steps * i // n for i in range(n + 1)]
    spans = list(zip(ends, ends[1:]))

    def meet(q, k):
      return k[0] < q[1] + (0 if self.causal else reach - 1) and k[1] > q[0] - reach + 1

    return [(q, [k for k in spans if meet(q, k)]) for q in spans]


class Facts(NamedTuple):
  """Who sees whom, int32 (B, T) and (B, S), segments or None; bias (B or 1, H, T, S) or None."""

  q_positions: Any
  k_positions: Any
  q_segments: Any
  k_segments: Any
  bias: Any

  def at(self, rule, q, k, groups):
    """(mask (B, 1, 1, q, k), bias (B or 1, G, R, q, k) or None) of a pair of spans."""
    names = (
      (self.q_positions, q),
      (self.k_positions, k),
      (self.q_segments, q),
      (self.k_segments, k),
    )
    mask = allowed(
      *(None if x is None else x[:, slice(*span)] for x, span in names),
      causal=rule.causal,
      window=rule.window,
    )[:, None, None]
    if self.bias is None:
      return mask, None
    bias = self.bias[..., slice(*q), slice(*k)]
    return mask, bias.reshape(bias.shape[0], groups, -1, *bias.shape[2:])


dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def queries(x_BTHK, span, groups: int):
  """(B, G, R, t, K): a span of queries, heads in front, R of them to a group."""
  x = x_BTHK[:, slice(*span)]
  return x.reshape(*x.shape[:2], groups, -1, x.shape[-1]).transpose(0, 2, 3, 1, 4)


def keys(x_BSGK, span):
  """(B, G, s, K)."""
  return x_BSGK[:, slice(*span)].transpose(0, 2, 1, 3)


def logits(raw, mask, bias, rule):
  """(the logits, tanh of the cap or None) from q.k."""
  z, bent = raw * rule.scale, None
  if rule.cap is not None:
    bent = jnp.tanh(z / rule.cap)
    z = rule.cap * bent
  if bias is not None:
    z = z + bias
  return jnp.where(mask, z, NEVER), bent


def pair(rule, q, k, v, dy, row, seen):
  """Gradients through a pair of blocks: of q (B, G, K, R, t), of k and v (B, G, s, K), and of the
  logits (B, G, s, R, t); those of q and k still without the scale.

  row: of each query its largest logit, 1 / sum of exponentials, and dy.y, (B, G, R, t, 1). seen:
    what `Facts.at` gives.
  """
  (top, share, along), (mask, bias) = (jax.tree.map(turn, x) for x in (row, seen))
  z, bent = logits(dot('bgsk,bgrtk->bgsrt', k, q), mask, bias, rule)
  p = jnp.exp(z - top) * share
  dz = p * (dot('bgsk,bgrtk->bgsrt', v, dy) - along)
  ds = (dz if bent is None else dz * (1 - bent * bent)).astype(q.dtype)
  dq = dot('bgks,bgsrt->bgkrt', k.transpose(0, 1, 3, 2), ds)
  return dq, dot('bgsrt,bgrtk->bgsk', ds, q), dot('bgsrt,bgrtk->bgsk', p.astype(q.dtype), dy), dz


def turn(x):
  """(..., R, t, s) -> (..., s, R, t)."""
  return x.transpose(0, 1, 4, 2, 3)
