"""Attention for the XLA compiler: blocks of queries against blocks of keys, without those that
nobody may see.

Forward, for a block of queries:

  z = mask(scale q.k + bias);  m = max z;  p = exp(z - m) / sum exp(z - m);  y = p v

Backward, for a pair of blocks, p made again:

  dp = dy.v;  ds = p (dp - dy.y);  dv = p^T dy;  dk = scale ds^T q;  dq = scale ds k

Logits exist only a block at a time and nothing of the size of (time, time) is kept for the backward
pass, which makes p again from q, k and the row's m and sum (Dao et al., 2022, arXiv:2205.14135;
here the softmax of a row is whole, not online). Its blocks stand (key, query): then each of its
products contracts the last axis of its left side. XLA:CPU multiplies these up to twice as fast as
products that contract the axis before. Other compilers do not mind.

Reverse mode and forward over reverse (Hessian-vector products) work; forward mode alone does not,
the `reference` has it.
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


_dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def _queries(x_BTHK, span, groups: int):
  """(B, G, R, t, K): a span of queries, heads in front, R of them to a group."""
  x = x_BTHK[:, slice(*span)]
  return x.reshape(*x.shape[:2], groups, -1, x.shape[-1]).transpose(0, 2, 3, 1, 4)


def _keys(x_BSGK, span):
  """(B, G, s, K)."""
  return x_BSGK[:, slice(*span)].transpose(0, 2, 1, 3)


def _logits(raw, mask, bias, rule):
  """(the logits, tanh of the cap or None) from q.k."""
  z, bent = raw * rule.scale, None
  if rule.cap is not None:
    bent = jnp.tanh(z / rule.cap)
    z = rule.cap * bent
  if bias is not None:
    z = z + bias
  return jnp.where(mask, z, NEVER), bent


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(rule, q, k, v, facts):
  return _forward(rule, q, k, v, facts)[0]


def _forward(rule, q, k, v, facts):
  groups, out, rows = k.shape[2], [], []
  for here, theres in rule.pairs(q.shape[1], k.shape[1]):
    q_BGRTK = _queries(q, here, groups)
    z = [
      _logits(
        _dot('bgrtk,bgsk->bgrts', q_BGRTK, _keys(k, t)), *facts.at(rule, here, t, groups), rule
      )[0]
      for t in theres
    ]
    top = functools.reduce(jnp.maximum, [jnp.max(x, axis=-1, keepdims=True) for x in z], FLOOR)
    p = [jnp.exp(x - top) for x in z]
    total = jnp.maximum(sum(jnp.sum(x, axis=-1, keepdims=True) for x in p), 1e-30)
    y = (
      sum(_dot('bgrts,bgsk->bgrtk', x.astype(v.dtype), _keys(v, t)) for x, t in zip(p, theres))
      / total
    )
    out.append(y.transpose(0, 3, 1, 2, 4).reshape(y.shape[0], -1, *q.shape[2:]).astype(q.dtype))
    rows.append((top, total))
  y = jnp.concatenate(out, axis=1)
  return y, (q, k, v, facts, y, rows)


def _pair(rule, q, k, v, dy, row, seen):
  """Gradients through a pair of blocks: of q (B, G, K, R, t), of k and v (B, G, s, K), and of the
  logits (B, G, s, R, t).
  """
  (top, share, dot), (mask, bias) = (jax.tree.map(_turn, x) for x in (row, seen))
  z, bent = _logits(_dot('bgsk,bgrtk->bgsrt', k, q), mask, bias, rule)
  p = jnp.exp(z - top) * share
  dz = p * (_dot('bgsk,bgrtk->bgsrt', v, dy) - dot)
  ds = (dz if bent is None else dz * (1 - bent * bent)).astype(q.dtype)
  dq = _dot('bgks,bgsrt->bgkrt', k.transpose(0, 1, 3, 2), ds)
  return dq, _dot('bgsrt,bgrtk->bgsk', ds, q), _dot('bgsrt,bgrtk->bgsk', p.astype(q.dtype), dy), dz


def _turn(x):
  """(..., R, t, s) -> (..., s, R, t)."""
  return x.transpose(0, 1, 4, 2, 3)


def _backward(rule, kept, dy_BTHK):
  q, k, v, facts, y, rows = kept
  steps, keys, groups = q.shape[1], k.shape[1], k.shape[2]
  dot_BTH1 = jnp.sum(dy_BTHK.astype(jnp.float32) * y.astype(jnp.float32), axis=-1, keepdims=True)
  dq, dk, dv, dz = [], {}, {}, {}
  for (here, theres), (top, total) in zip(rule.pairs(steps, keys), rows):
    row = (top, 1 / total, _queries(dot_BTH1, here, groups))
    found = [
      _pair(
        rule,
        _queries(q, here, groups),
        _keys(k, t),
        _keys(v, t),
        _queries(dy_BTHK, here, groups),
        row,
        facts.at(rule, here, t, groups),
      )
      for t in theres
    ]
    dq.append(sum(f[0] for f in found))
    for t, (_, dk_t, dv_t, dz_t) in zip(theres, found):
      dk[t], dv[t] = (a[t] + b if t in a else b for a, b in ((dk, dk_t), (dv, dv_t)))
      dz[here, t] = dz_t

  def merge(spans, like):  # (B, G, s, K) by span -> (B, S, G, K)
    return jnp.concatenate([spans[t].transpose(0, 2, 1, 3) for t in sorted(spans)], axis=1).astype(
      like.dtype
    )

  dq = jnp.concatenate(
    [x.transpose(0, 4, 1, 3, 2).reshape(*x.shape[:1], -1, *q.shape[2:]) for x in dq], axis=1
  )
  dk = {t: x * rule.scale for t, x in dk.items()}
  return (
    (dq * rule.scale).astype(q.dtype),
    merge(dk, k),
    merge(dv, v),
    facts._replace(**dict.fromkeys(Facts._fields[:4]), bias=_bias_gradient(facts.bias, dz)),
  )


def _bias_gradient(bias, dz):
  """From the logits' gradients by pair of spans; pairs that do not meet have none."""
  if bias is None:
    return None
  out = jnp.zeros(bias.shape, jnp.float32)
  for (q, k), x in dz.items():  # (B, G, s, R, t)
    x = x.transpose(0, 1, 3, 4, 2).reshape(x.shape[0], bias.shape[1], q[1] - q[0], -1)
    out = out.at[..., slice(*q), slice(*k)].set(
      x if bias.shape[0] > 1 else jnp.sum(x, axis=0, keepdims=True)
    )
  return out.astype(bias.dtype)


_attend.defvjp(_forward, _backward)


def attention(
  q,
  k,
  v,
  *,
  q_positions,
  k_positions,
  q_segments,
  k_segments,
  causal,
  window,
  cap,
  scale,
  bias,
  aligned,
):
  """(B, T, H, K) from q (B, T, H, K) and k, v (B, S, G, K). `aligned`: key i stands at query i's
  place in the row.
  """
  rule = Rule(causal=causal, window=window, cap=cap, scale=scale, aligned=aligned)
  return _attend(rule, q, k, v, Facts(q_positions, k_positions, q_segments, k_segments, bias))
