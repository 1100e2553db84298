"""The delta rule, a chunk of tokens at a time: matrix products within chunks, and a recurrence from
chunk to chunk alone.

For a chunk with rows Q, K, V, b = diag(beta), and the memory S0 before it:

  A = stril(b K K^T),   M = (I + A)^-1,   W = M b K,   U = M b V       (WY form, all chunks at once)
  D = U - W S0,   O = Q S0 + tril(Q K^T) D,   S1 = S0 + K^T D          (one chunk after another)

Backward, from the last chunk to the first, with G = dO and the dS that comes from behind:

  P = tril(Q K^T),   dP = tril(G D^T),   dD = P^T G + K dS
  dQ = G S0^T + dP K,   dK = dP^T Q + D dS^T,   dU = dD,   dW = -dD S0^T
  dS <- dS + Q^T G - W^T dD
  X = M^T dW,   Y = M^T dU,   dM = dW (b K)^T + dU (b V)^T,   dA = -stril(M^T dM M^T)
  dK += b X + b dA K + dA^T b K,   dV = b Y,   dbeta = sum (X K) + sum (Y V) + sum (dA (K K^T))

Kept for it are the inputs and M; W, U, D and the memories at the chunks' ends are made again. Where
documents begin inside a chunk, tokens of unlike documents meet nowhere (A, P), S0 is read by those
of the first alone, and those of the last alone are written to S1. Yang et al., 2024
(arXiv:2406.06484), sections 3.2 and 3.3. The inverse is made by substitution: a product of powers
of A would lose all digits where keys are alike. Reverse mode only.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lmjax.parallel import shard

CHUNK = 64

_dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


class Chunks(NamedTuple):
  """Arrays cut into N chunks of C tokens: q, k (N, B, H, C, K); v (N, B, H, C, V); beta, runs
  (N, B, H or 1, C), the number of documents begun in the chunk so far.
  """

  q: jax.Array
  k: jax.Array
  v: jax.Array
  beta: jax.Array
  runs: jax.Array


@jax.custom_vjp
def delta_rule(q, k, v, beta, starts, state):
  """See the package."""
  return _forward(q, k, v, beta, starts, state)[0]


def _cut(x, size: int):
  """(B, T, ...) to (N, B, C, ...), missing tokens 0: they write nothing and begin nothing."""
  x = jnp.pad(x, [(0, 0), (0, -x.shape[1] % size)] + [(0, 0)] * (x.ndim - 2))
  return jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)


def _chunks(q, k, v, beta, starts) -> Chunks:
  size = min(CHUNK, q.shape[1])
  arrays = (jnp.moveaxis(_cut(x, size), 3, 2) for x in (q, k, v, beta))
  return Chunks(*arrays, jnp.cumsum(_cut(starts, size), axis=-1, dtype=jnp.int32)[:, :, None])


def _joined(x, steps: int):
  """(N, B, H, C, ...) to (B, T, H, ...)."""
  x = jnp.moveaxis(jnp.moveaxis(x, 3, 2), 0, 1)
  return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :steps]


def _low(runs, strict: bool):
  """(..., C, C): whether j comes before i (or is i) in i's document."""
  n = runs.shape[-1]
  lower = jnp.tril(jnp.ones((n, n), bool), -1 if strict else 0)
  return lower & (runs[..., :, None] == runs[..., None, :])


def _inverse(c: Chunks):
  """M, float32."""
  kk = _dot('nbhik,nbhjk->nbhij', c.k, c.k)
  a = jnp.where(_low(c.runs, True), c.beta[..., None] * kk, 0.0)
  eye = jnp.broadcast_to(jnp.eye(a.shape[-1]), a.shape)
  return jax.lax.linalg.triangular_solve(eye + a, eye, left_side=True, lower=True)


def _factors(c: Chunks, m):
  """W and U in the dtype of the keys."""
  b, m = c.beta[..., None], m.astype(c.k.dtype)
  times = lambda x: _dot('nbhij,nbhjx->nbhix', m, (b * x).astype(x.dtype)).astype(x.dtype)
  return times(c.k), times(c.v)


class Rows(NamedTuple):
  """Of one chunk, (B, 1, C, 1): tokens that read S0, that are written to S1; (B, 1, 1, 1): whether
  S0 goes on.
  """

  first: jax.Array
  last: jax.Array
  keep: jax.Array


def _rows(runs) -> Rows:
  end = runs[..., -1:]
  return Rows((runs == 0)[..., None], (runs == end)[..., None], (end == 0)[..., None])


def _written(s, k, w, u, runs):
  """(S1, D): one chunk forward."""
  r = _rows(runs)
  d = u - jnp.where(r.first, _dot('bhik,bhkv->bhiv', w, s.astype(w.dtype)), 0.0)
  kept = jnp.where(r.last, k, 0)
  return jnp.where(r.keep, s, 0.0) + _dot('bhik,bhiv->bhkv', kept, d.astype(k.dtype)), d


def _read(s, d, q, k, runs):
  """O of one chunk."""
  own = jnp.where(_low(runs, False), _dot('bhik,bhjk->bhij', q, k), 0.0).astype(q.dtype)
  before = jnp.where(_rows(runs).first, _dot('bhik,bhkv->bhiv', q, s.astype(q.dtype)), 0.0)
  return before + _dot('bhij,bhjv->bhiv', own, d.astype(q.dtype))


STEPS, MEMORY = ('batch', None, 'heads', None), ('batch', 'heads', None, None)


def _placed(f, *names):
  """f, left to the partitioner: batch and heads of what it returns stay apart."""
  return shard.automatic(f, tuple(map(shard.spec, names)))


def _forward(q, k, v, beta, starts, state):
  def run(q, k, v, beta, starts, state):
    c = _chunks(q, k, v, beta, starts)
    m = _inverse(c)

    def step(s, x):
      q, k, w, u, runs = x
      new, d = _written(s, k, w, u, runs)
      return new, _read(s, d, q, k, runs).astype(v.dtype)

    last, o = jax.lax.scan(step, state, (c.q, c.k, *_factors(c, m), c.runs))
    return _joined(o, q.shape[1]), last, m

  given = q, k, v, beta, starts, state
  o, last, m = _placed(run, STEPS, MEMORY, (None, *MEMORY))(*given)
  return (o, last), (*given, m)


def _backward(kept, slopes):
  *given, m = kept
  run = _placed(_slopes, STEPS, STEPS, STEPS, STEPS[:3], MEMORY)
  *sequences, state = run(*given, m, *slopes)
  return *sequences, None, state


def _slopes(q, k, v, beta, starts, state, m, do, ds):
  """The gradients of q, k, v, beta and state."""
  c, steps = _chunks(q, k, v, beta, starts), q.shape[1]
  g = jnp.moveaxis(_cut(do, c.q.shape[3]), 3, 2).astype(q.dtype)
  w, u = _factors(c, m)
  memories = lambda s, x: (_written(s, *x)[0], s)
  _, before = jax.lax.scan(memories, state, (c.k, w, u, c.runs))
  ds, (dq, dk, dw, du) = jax.lax.scan(_back, ds, (c.q, c.k, w, u, c.runs, before, g), reverse=True)
  more, dv, dbeta = _of_factors(c, m, dw, du)
  cast = lambda x, like: _joined(x, steps).astype(like.dtype)
  return cast(dq, q), cast(dk + more, k), cast(dv, v), cast(dbeta, beta), ds


def _back(ds, x):
  """One chunk backward: dS before it, and (dQ, dK, dW, dU)."""
  q, k, w, u, runs, s, g = x
  dtype = q.dtype
  r, low, d = _rows(runs), _low(runs, False), _written(s, k, w, u, runs)[1].astype(dtype)
  s, to = s.astype(dtype), ds.astype(dtype)
  first, last = jnp.where(r.first, g, 0), jnp.where(r.last, k, 0)
  p = jnp.where(low, _dot('bhik,bhjk->bhij', q, k), 0.0).astype(dtype)
  dp = jnp.where(low, _dot('bhiv,bhjv->bhij', g, d), 0.0).astype(dtype)
  dd = _dot('bhij,bhiv->bhjv', p, g) + _dot('bhjk,bhkv->bhjv', last, to)
  dd_first = jnp.where(r.first, dd, 0.0).astype(dtype)
  dq = _dot('bhiv,bhkv->bhik', first, s) + _dot('bhij,bhjk->bhik', dp, k)
  dk = _dot('bhij,bhik->bhjk', dp, q)
  dk += jnp.where(r.last, _dot('bhjv,bhkv->bhjk', d, to), 0.0)
  dw = -_dot('bhiv,bhkv->bhik', dd_first, s)
  ds = jnp.where(r.keep, ds, 0.0) + _dot('bhik,bhiv->bhkv', q, first)
  return ds - _dot('bhik,bhiv->bhkv', w, dd_first), (dq, dk, dw, dd)


def _of_factors(c: Chunks, m, dw, du):
  """(dK, dV, dbeta) by way of W and U, float32."""
  k, v, b = c.k.astype(jnp.float32), c.v.astype(jnp.float32), c.beta[..., None]
  x, y = (_dot('nbhij,nbhic->nbhjc', m, z) for z in (dw, du))
  dm = _dot('nbhik,nbhjk->nbhij', dw, b * k) + _dot('nbhiv,nbhjv->nbhij', du, b * v)
  da = -_dot('nbhli,nbhlm,nbhjm->nbhij', m, dm, m)
  da = jnp.where(_low(c.runs, True), da, 0.0)
  scaled = b * da
  dk = b * x + _dot('nbhij,nbhjk->nbhik', scaled, k) + _dot('nbhij,nbhik->nbhjk', scaled, k)
  kk = _dot('nbhik,nbhjk->nbhij', k, k)
  dbeta = jnp.sum(x * k, -1) + jnp.sum(y * v, -1) + jnp.sum(da * kk, -1)
  return dk, b * y, dbeta


delta_rule.defvjp(_forward, _backward)
