"""What parts share that treat each tensor by itself, and how a part reports numbers.

A tensor is one layer's: layers and experts stacked in one array are told apart by the facts, so
that the same model unrolled trains alike. Statistics keep their axes with size 1, hence broadcast.

A part that measures something keeps float32 scalars in the field `metrics` of its state, a
dictionary. The names are part of its interface; `optim/<part>/<name>` is what they are logged as.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class Measured(NamedTuple):
  """The state of a part that keeps nothing but what it reports."""

  metrics: dict[str, jax.Array]


def each(fn, facts, *trees):
  """fn(fact, leaf, ...) of every parameter; what masks one out has no leaves and passes."""

  def one(fact, *parts):
    return jax.tree.map(lambda *leaves: fn(fact, *leaves), *parts)

  return jax.tree.map(one, facts, *trees)


def axes(fact) -> tuple[int, ...]:
  """The axes of one tensor: all but the stacked ones."""
  _, ins, outs = fact.axes()
  return tuple(ins + outs)


def norm(fact, x):
  """The Euclidean norm of each tensor."""
  return jnp.sqrt(jnp.sum(jnp.square(x), axis=axes(fact), keepdims=True))


def rms(fact, x):
  """The root mean square of each tensor."""
  return jnp.sqrt(jnp.mean(jnp.square(x), axis=axes(fact), keepdims=True))


def share(tree) -> jax.Array:
  """The share of True among the elements of all leaves, float32."""
  leaves = jax.tree.leaves(tree)
  n = sum(x.size for x in leaves)
  return sum(jnp.sum(x, dtype=jnp.float32) for x in leaves) / max(n, 1) + jnp.zeros(())


def zeros(tree):
  """A float32 buffer for each parameter, placed like it."""
  return jax.tree.map(lambda x: jnp.zeros_like(x, dtype=jnp.float32), tree)


def per_tensor(facts, tree, value: float = 0.0):
  """A float32 number for each tensor."""

  def one(fact, x):
    own = axes(fact)
    return jnp.full([1 if i in own else n for i, n in enumerate(x.shape)], value, jnp.float32)

  return each(one, facts, tree)


def unbiased(b: float, t):
  """The factor d_t of a running mean that starts without bias: x <- d_t x + (1 - d_t) new.

  d_t = b (1 - b^(t-1)) / (1 - b^t), t = 1, 2, ...; x is then what b gives after division by
  1 - b^t, and d_1 = 0 forgets all that was before.
  """
  if b == 0:
    return jnp.zeros(())
  t = jnp.asarray(t, jnp.float32)
  return b * jnp.expm1((t - 1) * math.log(b)) / jnp.expm1(t * math.log(b))


def measured(fn, *names: str) -> optax.GradientTransformationExtraArgs:
  """A transformation without memory; fn(updates) gives (updates, {name: scalar})."""

  def init(params):
    return Measured({k: jnp.zeros(()) for k in names})

  def update(updates, state, params=None, **extra):
    out, metrics = fn(updates)
    assert set(metrics) == set(names)
    return out, Measured(metrics)

  return optax.GradientTransformationExtraArgs(init, update)


def mix(b, old: Any, new: Any):
  """b old + (1 - b) new, leaf by leaf."""
  return jax.tree.map(lambda x, y: b * x + (1 - b) * y, old, new)
