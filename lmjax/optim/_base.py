"""What optimizer parts share: range checks, and running a transformation in float32."""

import math

import jax
import jax.numpy as jnp
import optax


def require(ok: bool, where: str, value, wanted: str):
  """Raises ValueError naming the argument ('adam.b1'), its value and what is accepted."""
  if not ok:
    raise ValueError(f'{where}={value!r} is not accepted: {wanted} is expected')


def decay_rate(where: str, value: float):
  """A factor of a running mean: in [0, 1)."""
  require(0 <= value < 1, where, value, 'a number of at least 0 and below 1')


def positive(where: str, value: float):
  require(0 < value < math.inf, where, value, 'a finite number above 0')


def wide(tree):
  """Leaves in float32, or wider where they are already."""
  return jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), tree)


def in_float32(inner) -> optax.GradientTransformationExtraArgs:
  """`inner` with state and arithmetic in float32; updates keep the gradients' dtype.

  Optax keeps moments and forms norms in the dtype of the parameters: a bfloat16 second moment with
  b2 = 0.999 stops moving, and a float16 norm overflows at a gradient of 256.
  """
  inner = optax.with_extra_args_support(inner)

  def init(params):
    return inner.init(wide(params))

  def update(updates, state, params=None, **extra):
    params = None if params is None else wide(params)
    out, state = inner.update(wide(updates), state, params, **extra)
    return jax.tree.map(lambda new, old: new.astype(old.dtype), out, updates), state

  return optax.GradientTransformationExtraArgs(init, update)
