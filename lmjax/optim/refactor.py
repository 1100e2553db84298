"""Weight refactorization: a product of two factors is split anew, evenly.

  behind every `every`-th update, for each matrix W = B A kept as factors of rank r:
  B = Q_B R_B,   A^T = Q_A R_A,   U S V^T = svd(R_B R_A^T)       (r x r; W is never formed)
  B <- Q_B U sqrt(S),   A <- sqrt(S) V^T Q_A^T

W stays what it is, up to rounding, and so does the loss; the factors become balanced, B^T B = A A^T
= S: among the splits U S^c, S^(1-c) V^T the one of c = 1/2 has the best conditioned Hessian. Each
column of Q_B U has its largest entry positive, so that the result does not depend on the library.
Gradients pass through unchanged; the parameters are moved behind the step (fact `retract`),
whatever the rate. A refused step moves nothing and does not count.

Glentis et al., 2025 (arXiv:2505.22922), every 200 updates, together with a reset of the moments,
which belong to the old factors: Low-Rank-restarts is
  --config.model.linear='low_rank(rank=...)'
  --config.optim='clip() | reset(inner=adam(), every=200) | decay() | refactor(every=200)'
Both count accepted updates: the reset comes before the first gradient at the new factors.

Pairs are found by facts: two parameters of one module that share the axis `rank`, which one of them
contracts. Each layer and expert of a stack is factored by itself, in float32, on every device of a
mesh; the factors then lie as before. Work: about 6 (in + out) r^2 FLOPs a matrix and a singular
value decomposition of r x r, once in `every` updates. State: a count, 4 bytes in all.

Traps: without the reset, stale moments act in the wrong basis. A direction of singular value 0
(LoRA's B = 0, say) is 0 in both factors afterwards and never gets a gradient again. In bfloat16 the
new factors are rounded, and W with them. Averages of the parameters are averages of the factors:
their product is no longer near W once a new split lies between.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from lmjax.optim import _base, _lowrank, _place
from lmjax.parallel import facts as facts_lib
from lmjax.parallel.facts import Fact
from lmjax.registry import register

RANK = 'rank'  # the axis that two factors share


class Pair(NamedTuple):
  """Where two factors are: keys of their module, then the name and the fact of each."""

  module: tuple[str, ...]
  down: tuple[str, Fact]
  up: tuple[str, Fact]


class State(NamedTuple):
  """count: updates made."""

  count: jax.Array


def _retract(args: dict):
  return lambda state, params, facts: retracted(state, params, pairs(facts), args['every'])


@register('optim', retract=_retract)
def refactor(every: int = 200, *, facts) -> optax.GradientTransformationExtraArgs:
  """Gradients as they are, and factors split anew; ValueError for `every` below 1, and for a model
  that has no pair of factors.
  """
  _base.require(every >= 1, 'refactor.every', every, 'a number of at least 1')
  if not pairs(facts):
    raise ValueError(
      'config.optim: refactor finds no pair of factors in this model; matrices kept as factors, as '
      'by config.model.linear=low_rank(rank=...), are expected'
    )

  def init(params):
    return State(jnp.zeros((), jnp.int32))

  def update(updates, state, params=None, **extra):
    return updates, State(optax.safe_increment(state.count))

  return optax.GradientTransformationExtraArgs(init, update)


def pairs(facts) -> tuple[Pair, ...]:
  """The pairs of factors of a model. Raises ValueError where more than two share a rank."""
  modules: dict[tuple[str, ...], list[tuple[str, Fact]]] = {}
  for path, fact in jax.tree_util.tree_leaves_with_path(facts, is_leaf=facts_lib.is_fact):
    if RANK in fact.names:
      *module, name = (k.key for k in path)
      modules.setdefault(tuple(module), []).append((name, fact))
  out = []
  for module, members in modules.items():
    downs = [m for m in members if RANK not in m[1].inputs]
    ups = [m for m in members if RANK in m[1].inputs]
    if len(downs) != 1 or len(ups) != 1:
      names = ', '.join(name for name, _ in members)
      raise ValueError(
        f'config.optim: refactor finds {names} in {"/".join(module)} with the axis {RANK!r}; one '
        'factor that makes it and one that contracts it are expected'
      )
    out.append(Pair(module, downs[0], ups[0]))
  return tuple(out)


def retracted(state: State, params, pairs: tuple[Pair, ...], every: int):
  """The parameters, their factors split anew where the count says so."""
  factors = []
  for module, (down, _), (up, _) in pairs:
    own = functools.reduce(lambda tree, key: tree[key], module, params)
    factors.append((own[down], own[up]))

  def maybe(count, factors):
    anew = lambda factors: [_anew(*both) for both in zip(pairs, factors)]
    return jax.lax.cond(count % every == 0, anew, lambda factors: factors, factors)

  factors = _place.call(maybe, (state.count, factors), lambda _, factors: factors)
  for (module, (a, _), (b, _)), (down, up) in zip(pairs, factors):
    params = _with(params, module, {a: down, b: up})
  return params


def _with(tree, keys: tuple[str, ...], new: dict):
  """The tree with some entries of the module at `keys` replaced."""
  return {**tree, keys[0]: _with(tree[keys[0]], keys[1:], new)} if keys else {**tree, **new}


def _anew(pair: Pair, factors):
  (down, down_back), (up, up_back) = (
    _view(x, fact) for x, (_, fact) in zip(factors, (pair.down, pair.up))
  )
  down, up = split(down, up)
  return down_back(down), up_back(up)


def _view(x, fact):
  """(stack..., in, out) in float32, whole on every device, and the way back."""
  y, back = facts_lib.as_matrix(_place.everywhere(_base.wide(x)), fact)
  return y, lambda z: _place.as_parameter(back(z).astype(x.dtype), fact)


def split(down, up):
  """(..., in, r) and (..., r, out) with the same product, their squares equal and diagonal."""
  product = lambda x, y: jnp.matmul(x, y, precision=_lowrank.EXACT)
  (q_down, r_down), (q_up, r_up) = jnp.linalg.qr(down), jnp.linalg.qr(up.mT)
  u, size, v = jnp.linalg.svd(product(r_down, r_up.mT), full_matrices=False)
  left, right = product(q_down, u), product(v, q_up.mT)
  top = jnp.take_along_axis(left, jnp.argmax(jnp.abs(left), axis=-2, keepdims=True), axis=-2)
  sign, root = jnp.where(top < 0, -1.0, 1.0), jnp.sqrt(size)[..., None, :]
  return left * (sign * root), right * (sign * root).mT
