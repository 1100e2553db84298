"""Making parameters: every one through `param`, every matrix that meets activations through
`dense`.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax.parallel import facts
from lmjax.parallel import shard


@dataclasses.dataclass(frozen=True)
class Scheme:
  """How a model makes its parameters; static, carried by `Ctx.scheme`."""

  init: Any
  linear: Any
  position: Any
  param_dtype: Any = jnp.float32


def param(module: nn.Module, name: str, shape, fact: facts.Fact, scheme: Scheme, init=None):
  """A trained parameter with its fact; the initial value comes from the scheme, or from `init`
  where a method demands its own.
  """
  init = init or scheme.init.initializer(fact, tuple(shape))
  return module.param(name, facts.boxed(init, fact), tuple(shape), scheme.param_dtype)


def dense(
  ctx,
  name: str,
  ins: dict[str, int],
  outs: dict[str, int],
  role: str = 'hidden',
  bias: bool = False,
):
  """A linear map in the model's parameterization: contracts the axes `ins`, appends the axes
  `outs`.
  """
  return ctx.scheme.linear(
    ins=tuple(ins.items()),
    outs=tuple(outs.items()),
    role=role,
    bias=bias,
    scheme=ctx.scheme,
    name=name,
  )


def biased(module: nn.Module, y):
  """y + b where a linear part has a bias."""
  if not module.bias:
    return y
  names, sizes = zip(*module.outs)
  bias = param(module, 'bias', sizes, facts.Fact(names, (), 'bias'), module.scheme)
  return y + shard.gather(bias, names).astype(y.dtype)


@jax.custom_jvp
def _product(x_NI, kernel_IO):
  """x W of matrices. On the CPU the gradient of a tall W is made as (dy^T x)^T."""
  return x_NI @ kernel_IO


@_product.defjvp
def _product_jvp(primals, tangents):
  (x, kernel), (dx, dkernel) = primals, tangents
  return x @ kernel, dx @ kernel + _change(x, dkernel)


def _change(x, kernel):
  """x W, written so that its transpose, the gradient of W, is fast.

  XLA:CPU makes x^T dy at two thirds of its usual speed where it has more rows than columns. The
  barrier's own transpose keeps it from undoing the transposition of (dy^T x)^T. Other compilers
  choose for themselves.
  """
  if kernel.shape[0] <= kernel.shape[1]:
    return x @ kernel

  def turned(x, kernel):
    turned_OI = jax.lax.optimization_barrier(kernel.T)
    return jax.lax.dot_general(turned_OI, x, (((1,), (1,)), ((), ()))).T

  return jax.lax.platform_dependent(x, kernel, cpu=turned, default=jnp.matmul)


def contract(x, kernel, n: int, out_names):
  """Contracts the last n axes of x with the first n of kernel, in the dtype of x.

  Without a mesh it is one 2-D matrix product: XLA:CPU runs the weight gradients of N-D einsums
  several times slower.
  """
  lead, rest = x.shape[: x.ndim - n], kernel.shape[n:]
  kernel = kernel.astype(x.dtype)
  if shard.mesh().empty:
    rows = math.prod(kernel.shape[:n])
    y = _product(x.reshape(-1, rows), kernel.reshape(rows, -1))
    return y.reshape(*lead, *rest)
  names = (('batch', 'time') + (None,) * len(lead))[: len(lead)] + tuple(out_names)
  dims = ((tuple(range(x.ndim - n, x.ndim)), tuple(range(n))), ((), ()))
  place = shard.spec(names, gathered=True, shape=(*lead, *rest))
  if shard.is_explicit():
    return jax.lax.dot_general(x, kernel, dims, out_sharding=place)
  return jax.lax.with_sharding_constraint(jax.lax.dot_general(x, kernel, dims), place)


def product(x, kernel, names, n: int):
  """`contract` with a parameter of these axis names, gathered in the dtype of x where it is used.

  On an auto mesh the backward pass gathers it again instead of keeping it, and its gradient is
  summed in float32, over tokens and over devices.
  """
  if shard.mesh().empty or shard.is_explicit():
    kernel = shard.gather(kernel.astype(x.dtype), names)
    return contract(x, kernel, n, act(names[n:]))
  return _spread(x, kernel, names, n)


def _gathered(x, kernel, names, n):
  return contract(x, shard.gather(kernel.astype(x.dtype), names), n, act(names[n:]))


_spread = jax.custom_vjp(_gathered, nondiff_argnums=(2, 3))


def _spread_forward(x, kernel, names, n):
  return _gathered(x, kernel, names, n), (x, kernel)


def _spread_backward(names, n, kept, dy):
  x, kernel = kept
  lead, out = list(range(x.ndim - n)), kernel.ndim - n
  w = shard.gather(kernel.astype(x.dtype), names)
  ends = list(range(dy.ndim - out, dy.ndim)), list(range(n, kernel.ndim))
  dx = jax.lax.dot_general(dy, w, (ends, ((), ())))
  axes = (('batch', 'time') + (None,) * len(lead))[: len(lead)] + act(names[:n])
  sums = jax.lax.dot_general(x, dy, ((lead, lead), ((), ())), preferred_element_type=jnp.float32)
  return shard.shard(dx, *axes), shard.shard(sums, *names).astype(kernel.dtype)


_spread.defvjp(_spread_forward, _spread_backward)


def act(names) -> tuple:
  """Axis names of an activation: the parameter axis `embed` is `width` there."""
  return tuple('width' if n == 'embed' else n for n in names)
