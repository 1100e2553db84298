"""The gradient of `mosaic`: one pass from a row's first chunk to its last keeps the memory S0
before each, in the dtype of the keys, as products use it; one from the last to the first does the
rest. G = dO, dS that comes from behind; what has to do with documents is left out here.

  R = V - K S0,   Z = b R,   D = (I + A)^-1 Z,   P = tril(Q K^T),   dP = tril(G D^T)
  dD = P^T G + K dS,   dZ = (I + A)^-T dD,   dA = -stril(dZ D^T),   dV = b dZ
  dQ = G S0^T + dP K,   dK = dP^T Q + D dS^T - dV S0^T + b dA K + (b dA)^T K
  dbeta = sum (dZ R) + sum (dA (K K^T)),   dS <- dS + Q^T G - K^T dV
"""

import jax
from jax.experimental import pallas as pl
import jax.numpy as jnp

from lmjax.kernels.delta_rule import mosaic_kernel as kernel

_dot = kernel.dot


def slopes(q, k, v, beta, starts, state, do, ds):
  """The gradients of q, k, v, beta and state."""
  plan = kernel.plan(q, v)
  b, runs = plan.cut(beta), plan.cut(starts[..., None], sums=True)
  shape = jax.ShapeDtypeStruct((*b.shape[:3], *state.shape[2:]), k.dtype)
  before, _ = plan.call(
    _memories,
    'delta_rule_memories',
    [(k, plan.tokens(k)), (v, plan.tokens(v)), (b, plan.rows(b)), (runs, plan.rows(runs))]
    + [(state, plan.memory(state))],
    [(shape, plan.chunk(shape)), (state, plan.memory(state))],
    (1, 1, 2),
  )
  back = plan._replace(reverse=True)
  row = [(x, back.tokens(x)) for x in (q, k, v, do.astype(q.dtype))]
  row += [(x, back.rows(x)) for x in (b, runs)]
  *found, db, ds = back.call(
    _kernel,
    'delta_rule_gradient',
    [*row, (before, back.chunk(before)), (ds, back.memory(ds))],
    [*row[:3], row[4], (ds, back.memory(ds))],
    (6, 5, 7),
  )
  return *found, plan.joined(db), ds


def _memories(steps, many, k, v, beta, runs, state, before, s):
  del many
  chunk = pl.program_id(2)
  kernel.begin(chunk, s, state)
  before[0, 0] = s[0].astype(before.dtype)
  k, v = kernel.here(steps, chunk, k, v)
  c = kernel.chunk(k, v, beta, runs, s[0])
  s[0] = kernel.after(c, k, s[0])


def _kernel(steps, many, q, k, v, do, beta, runs, before, behind, dq, dk, dv, db, ds):
  kernel.begin(pl.program_id(2), ds, behind)
  q, k, v, g = kernel.here(steps, many - 1 - pl.program_id(2), q, k, v, do)
  s, to, dtype = before[0, 0], ds[0], k.dtype
  c = kernel.chunk(k, v, beta, runs, s)
  first = lambda x: jnp.where(c.first, x, 0)
  last = lambda x: jnp.where(c.last, x, 0)
  p, dp = (jnp.where(c.own, _dot(*x, 2, 2), 0.0).astype(dtype) for x in ((q, k), (g, c.d)))
  dd = _dot(p, g, 1, 1) + _dot(last(k), to.astype(dtype), 2, 1)
  dz = _dot(c.m, dd.astype(dtype), 1, 1)
  da = jnp.where(c.low, -_dot(dz.astype(dtype), c.d, 2, 2), 0.0)
  dr = c.b * dz
  left, scaled = first(dr).astype(dtype), (c.b * da).astype(dtype)
  at_q = first(_dot(g, s, 2, 2)) + _dot(dp, k, 2, 1)
  at_k = _dot(dp, q, 1, 1) + last(_dot(c.d, to.astype(dtype), 2, 2)) - _dot(left, s, 2, 2)
  at_k += _dot(scaled, k, 2, 1) + _dot(scaled, k, 1, 1)
  at_b = jnp.sum(dz * c.r, 2, keepdims=True) + jnp.sum(da * c.kk, 2, keepdims=True)
  for ref, x in ((dq, at_q), (dk, at_k), (dv, dr)):
    ref[0] = jnp.swapaxes(x.astype(ref.dtype), 0, 1)
  db[0, 0] = kernel.row(at_b)
  ds[0] = jnp.where(c.keep, to, 0.0) + _dot(first(q), g, 1, 1) - _dot(k, left, 1, 1)
