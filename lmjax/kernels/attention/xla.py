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

import jax
import jax.numpy as jnp

from lmjax.kernels.attention import blocks


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(rule, q, k, v, facts):
  return _forward(rule, q, k, v, facts)[0]


def _forward(rule, q, k, v, facts):
  groups, out, rows = k.shape[2], [], []
  for here, theres in rule.pairs(q.shape[1], k.shape[1]):
    q_BGRTK = blocks.queries(q, here, groups)
    z = [
      blocks.logits(
        blocks.dot('bgrtk,bgsk->bgrts', q_BGRTK, blocks.keys(k, t)),
        *facts.at(rule, here, t, groups),
        rule,
      )[0]
      for t in theres
    ]
    top = functools.reduce(
      jnp.maximum, [jnp.max(x, axis=-1, keepdims=True) for x in z], blocks.FLOOR
    )
    p = [jnp.exp(x - top) for x in z]
    total = jnp.maximum(sum(jnp.sum(x, axis=-1, keepdims=True) for x in p), 1e-30)
    y = (
      sum(
        blocks.dot('bgrts,bgsk->bgrtk', x.astype(v.dtype), blocks.keys(v, t))
        for x, t in zip(p, theres)
      )
      / total
    )
    out.append(y.transpose(0, 3, 1, 2, 4).reshape(y.shape[0], -1, *q.shape[2:]).astype(q.dtype))
    rows.append((top, total))
  y = jnp.concatenate(out, axis=1)
  return y, (q, k, v, facts, y, rows)


def _backward(rule, kept, dy_BTHK):
  q, k, v, facts, y, rows = kept
  steps, keys, groups = q.shape[1], k.shape[1], k.shape[2]
  dot_BTH1 = jnp.sum(dy_BTHK.astype(jnp.float32) * y.astype(jnp.float32), axis=-1, keepdims=True)
  dq, dk, dv, dz = [], {}, {}, {}
  for (here, theres), (top, total) in zip(rule.pairs(steps, keys), rows):
    row = (top, 1 / total, blocks.queries(dot_BTH1, here, groups))
    found = [
      blocks.pair(
        rule,
        blocks.queries(q, here, groups),
        blocks.keys(k, t),
        blocks.keys(v, t),
        blocks.queries(dy_BTHK, here, groups),
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
    facts._replace(**dict.fromkeys(blocks.Facts._fields[:4]), bias=_bias_gradient(facts.bias, dz)),
  )


def _bias_gradient(bias, dz):
  """From the logits' gradients by pair of spans; pairs that do not meet have none."""
  if bias is None:
    return None
  out = jnp.zeros_like(bias, jnp.float32)
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
  rule = blocks.Rule(causal=causal, window=window, cap=cap, scale=scale, aligned=aligned)
  return _attend(
    rule, q, k, v, blocks.Facts(q_positions, k_positions, q_segments, k_segments, bias)
  )
