"""What galore, fira and apollo share: which matrices are projected, how, and what follows.

A matrix S of one layer has its short side first: (short, long), short = min(in, out). A basis P is
(short, r). Projected it is R = P^T S, of shape (r, long); stacks of layers lead. A matrix whose
short side is below the rank would become no smaller and is trained in full, as is whatever is no
hidden or residual matrix.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lmjax.optim import _place, _tensors
from lmjax.parallel import facts as facts_lib

EXACT = jax.lax.Precision.HIGHEST  # else 10 or 7 bits of the products are kept on TPU and GPU


class Adam(NamedTuple):
  """Moments of each parameter, of its low-rank shape where it is projected."""

  m: Any
  v: Any


def is_low(fact, x, rank: int) -> bool:
  """Whether a parameter is projected."""
  inside = fact.is_matrix and fact.role in ('hidden', 'residual')
  return inside and rank <= min(fact.fans(x.shape))


def which(facts, tree, rank: int):
  """For each parameter whether it is projected."""
  return _tensors.each(lambda fact, x: is_low(fact, x, rank), facts, tree)


def short_first(fact, x):
  """(stack..., short, long) and the function that brings such an array into the parameter's form;
  of a square matrix the side of the inputs counts as short.
  """
  y, back = facts_lib.as_matrix(x, fact)
  if y.shape[-2] <= y.shape[-1]:
    return y, lambda z: _place.as_parameter(back(z), fact)
  return y.mT, lambda z: _place.as_parameter(back(z.mT), fact)


def low_fact(fact, x):
  """The fact of R: contracted is the side that was; neither lies along a mesh axis."""
  stack, _, _ = fact.axes()
  fan_in, fan_out = fact.fans(x.shape)
  sides = ('width', None) if fan_in <= fan_out else (None, 'width')
  return facts_lib.Fact((*(fact.names[i] for i in stack), *sides), ('width',), fact.role)


def stack_shape(fact, x) -> tuple[int, ...]:
  return tuple(x.shape[i] for i in fact.axes()[0])


def low_shape(fact, x, rank: int) -> tuple[int, ...]:
  return (*stack_shape(fact, x), rank, max(fact.fans(x.shape)))


def zeros(shape):
  return _place.everywhere(jnp.zeros(shape, jnp.float32))


def init_basis(facts, params, rank: int):
  """Zeros for P where a matrix is projected, else ()."""

  def one(fact, p):
    shape = *stack_shape(fact, p), min(fact.fans(p.shape)), rank
    return zeros(shape) if is_low(fact, p, rank) else ()

  return _tensors.each(one, facts, params)


def refresh(facts, grads, basis, rank: int, due):
  """The bases, where `due` (a traced truth value) the leading directions of these gradients.

  A matrix without a gradient (an expert without tokens) keeps its basis, and one that never had a
  gradient gets its basis with the first.
  """

  def wants(s, p):
    """(stack..., 1, 1): whether a matrix gets a new basis."""
    never = jnp.all(p == 0, axis=(-2, -1), keepdims=True)
    return (due | never) & jnp.any(s != 0, axis=(-2, -1), keepdims=True)

  def one(fact, g, p):
    if not is_low(fact, g, rank):
      return p
    s = short_first(fact, g)[0]
    return jnp.where(wants(s, p), leading(s, rank), p)

  def asked(fact, g, p):
    return jnp.any(wants(short_first(fact, g)[0], p)) if is_low(fact, g, rank) else False

  new = lambda grads, basis: _tensors.each(one, facts, grads, basis)
  some = jax.tree.leaves(_tensors.each(asked, facts, grads, basis))
  basis = jax.lax.cond(jnp.any(jnp.asarray(some)), new, lambda _, p: p, grads, basis)
  return jax.tree.map(_place.everywhere, basis)


def init_adam(facts, params, rank: int) -> Adam:
  def one(fact, p):
    if is_low(fact, p, rank):
      return zeros(low_shape(fact, p, rank))
    return jnp.zeros_like(p, dtype=jnp.float32)

  return Adam(_tensors.each(one, facts, params), _tensors.each(one, facts, params))


def adam(state: Adam, grads, low, b1: float, b2: float, eps: float):
  """(m / (sqrt(v) + eps), new moments), the bias of the first steps left in; see `unbias`. Where
  `low` is True the moments are kept whole on every device.
  """
  lay = lambda low, x: _place.everywhere(x) if low else x
  m = jax.tree.map(lay, low, _tensors.mix(b1, state.m, grads))
  v = jax.tree.map(lay, low, _tensors.mix(b2, state.v, jax.tree.map(jnp.square, grads)))
  return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), m, v), Adam(m, v)


def unbias(b1: float, b2: float, t):
  """sqrt(1 - b2^t) / (1 - b1^t): what Adam's update is multiplied by for the bias of m and v."""
  t = jnp.asarray(t, jnp.float32)
  rest = lambda b: 1.0 if b == 0 else -jnp.expm1(t * math.log(b))  # 1 - b^t would cancel
  return jnp.sqrt(rest(b2)) / rest(b1)


def project(basis, s):
  return jnp.einsum('...sr,...sl->...rl', basis, s, precision=EXACT)


def project_all(facts, tree, basis, rank: int):
  """R of the projected matrices, everything else as it is."""

  def one(fact, x, p):
    if not is_low(fact, x, rank):
      return x
    return _place.everywhere(project(p, short_first(fact, x)[0]))

  return _tensors.each(one, facts, tree, basis)


def back(basis, r):
  return jnp.einsum('...sr,...rl->...sl', basis, r, precision=EXACT)


def leading(s, rank: int):
  """The first `rank` left singular vectors, each with its largest entry positive.

  The sign of a singular vector is the library's whim; moments outlive the basis, so it must be one.
  """
  u = jnp.linalg.svd(s, full_matrices=False)[0][..., :rank]
  largest = jnp.take_along_axis(u, jnp.argmax(jnp.abs(u), axis=-2, keepdims=True), axis=-2)
  return u * jnp.where(largest < 0, -1.0, 1.0)


def init_norms(facts, params, rank: int):
  """A norm of 0 for each projected matrix, else ()."""

  def one(fact, p):
    return zeros((*stack_shape(fact, p), 1, 1)) if is_low(fact, p, rank) else ()

  return _tensors.each(one, facts, params)


def norm(x, axis=(-2, -1)):
  return jnp.sqrt(jnp.sum(jnp.square(x), axis=axis, keepdims=True))


def limit_growth(x, last, growth: float):
  """x of at most `growth` times the norm that it had last (0: never any), and its norm to keep.

  A matrix without a gradient keeps what it had: else its norm could only grow from zero again.
  """
  size = norm(x)
  most = jnp.where(last > 0, growth * (last + 1e-8), jnp.inf)
  kept = jnp.minimum(size, most)
  return x * jnp.where(size > 0, kept / size, 1.0), jnp.where(size > 0, kept, last)
