"""SOAP: Adam in the eigenbasis of Shampoo's two matrices, which turns slowly.

  the first gradient only starts the statistics; then t = 1, 2, ..., for each matrix G (in, out):
  m <- b1 m + (1 - b1) G,   G' = QL^T G QR,   m' = QL^T m QR,   v <- b2 v + (1 - b2) G'^2
  update = sqrt(1 - b2^t) / (1 - b1^t)  QL (m' / (sqrt(v) + eps)) QR^T
  L <- b2 L + (1 - b2) G G^T,   R <- b2 R + (1 - b2) G^T G
  QL, QR: at first the eigenvectors of L and R, largest eigenvalue first; every `every` updates
    the columns of Q sorted by diag(Q^T L Q), v with them, then Q <- qr(L Q)

Vyas et al., 2024 (arXiv:2409.11321) and its public code: b1 = b2 = 0.95, eps = 1e-8, every = 10,
max_dim = 10000, rate 0.003. A side longer than max_dim is not turned (embeddings are turned on the
side of the width alone); vectors, gains and biases get Adam, with a first step of 0 too. Decay, the
paper's 0.01: `soap() | decay(rate=0.01)`. m is kept unturned here, which is the same and needs no
turning when the basis moves. Each layer and expert of a stack has matrices of its own; all heads of
a projection are one matrix (contracted axes, other axes).

The eigenvectors of eigenvalues below a millionth of the largest are rounding; the first gradient of
few tokens has many. They are replaced by the vectors that complete the others in Householder's QR,
so that the same gradient gives the same basis on every device and mesh.

State, float32: m and v, 8 bytes a parameter; L, R, QL, QR, 8 (in^2 + out^2) bytes a matrix, for a
square one 16 more a parameter; and a count. Work: 8 (in + out) FLOPs a parameter each step, in full
float32, beside 6 x tokens for the gradient itself, and eigenvectors once, QR every `every` updates.
On a mesh decompositions are made on every device. Traps: v is not turned when the basis moves, so
`every` far above 10 costs quality; products in less than float32 spoil the basis.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lmjax.optim import _base, _lowrank, _nest, _place, _tensors
from lmjax.parallel import facts as facts_lib
from lmjax.registry import register


class Side(NamedTuple):
  """The statistics (stack..., n, n) of one side of a matrix and its basis."""

  stats: jax.Array
  basis: jax.Array


class State(NamedTuple):
  """count: gradients seen. m: unturned; v: turned. sides: (left, right), () where not turned."""

  count: jax.Array
  m: Any
  v: Any
  sides: Any


@register('optim', moments=False)
def soap(
  b1: float = 0.95,
  b2: float = 0.95,
  eps: float = 1e-8,
  every: int = 10,
  max_dim: int = 10000,
  *,
  facts,
) -> optax.GradientTransformationExtraArgs:
  """SOAP's direction; ValueError for b1, b2 outside [0, 1), eps not above 0, every or max_dim below
  1.
  """
  _base.decay_rate('soap.b1', b1)
  _base.decay_rate('soap.b2', b2)
  _base.positive('soap.eps', eps)
  _base.require(every >= 1, 'soap.every', every, 'a number of at least 1')
  _base.require(max_dim >= 1, 'soap.max_dim', max_dim, 'a number of at least 1')

  def init(params):
    def one(fact, p):
      make = lambda n: _lowrank.zeros((*_lowrank.stack_shape(fact, p), n, n))
      turns = lambda n: fact.is_matrix and n <= max_dim
      return tuple(Side(make(n), make(n)) if turns(n) else None for n in fact.fans(p.shape))

    m, v = _tensors.zeros(params), _tensors.zeros(params)
    return State(jnp.zeros((), jnp.int32), m, v, _tensors.each(one, facts, params))

  def update(updates, state, params):
    t = state.count
    factor = jnp.where(t > 0, _lowrank.unbias(b1, b2, jnp.maximum(t, 1)), 0.0)

    def one(fact, g, m, v, sides):
      (g, back), (m, _), (v, _) = (_view(fact, x) for x in (g, m, v))
      bases = [side and side.basis for side in sides]
      new_m = b1 * m + (1 - b1) * g
      new_v = b2 * v + (1 - b2) * _turn(g, bases) ** 2
      out = factor * _turn_back(_turn(new_m, bases) / (jnp.sqrt(new_v) + eps), bases)
      m, v = jnp.where(t > 0, new_m, m), jnp.where(t > 0, new_v, v)
      stats = [
        side and b2 * side.stats + (1 - b2) * (_product(g, g.mT) if left else _product(g.mT, g))
        for side, left in zip(sides, (True, False))
      ]
      # The basis is of past gradients when it is used: it moves after the step.
      case = jnp.where(t == 0, 0, jnp.where(t % every == 0, 1, 2))
      keep = lambda stats, bases, v: (bases, v)
      bases, v = jax.lax.switch(case, (_first, _next, keep), stats, bases, v)
      sides = tuple(q if q is None else Side(s, q) for s, q in zip(stats, bases))
      return back(out), back(m), back(v), jax.tree.map(_place.everywhere, sides)

    out = _tensors.each(one, facts, updates, state.m, state.v, state.sides)
    pick = lambda i: _nest.pick(updates, out, i)
    return pick(0), State(optax.safe_increment(t), pick(1), pick(2), pick(3))

  return _base.in_float32(optax.GradientTransformationExtraArgs(init, _place.automatic(update)))


def _view(fact, x):
  """(stack..., in, out) and the way back; of what is no matrix itself."""
  y, back = facts_lib.as_matrix(x, fact) if fact.is_matrix else (x, lambda z: z)
  return y, lambda z: _place.as_parameter(back(z), fact)


def _product(x, y):
  return jnp.matmul(x, y, precision=_lowrank.EXACT)


def _turn(x, bases):
  """QL^T x QR."""
  left, right = bases
  x = x if left is None else _product(left.mT, x)
  return x if right is None else _product(x, right)


def _turn_back(x, bases):
  return _turn(x, [q if q is None else q.mT for q in bases])


def _first(stats, bases, v):
  """Eigenvectors, largest eigenvalue first; those of rounding replaced (see above)."""

  def one(s):
    size, q = jnp.linalg.eigh(s)
    size, q = size[..., ::-1], q[..., ::-1]
    real = size > 1e-6 * size[..., :1]
    return jnp.linalg.qr(jnp.where(real[..., None, :], q, 0.0))[0]

  return [s if s is None else one(s) for s in stats], v


def _next(stats, bases, v):
  """One step of the power iteration from each basis, and v in the order of its columns."""
  out = []
  for axis, (s, q) in zip((-2, -1), zip(stats, bases)):
    if s is None:
      out.append(None)
      continue
    towards = _product(s, q)
    order = jnp.argsort(jnp.sum(q * towards, axis=-2), axis=-1, descending=True)
    v = jnp.take_along_axis(v, order[..., :, None] if axis == -2 else order[..., None, :], axis)
    out.append(jnp.linalg.qr(jnp.take_along_axis(towards, order[..., None, :], -1))[0])
  return out, v
