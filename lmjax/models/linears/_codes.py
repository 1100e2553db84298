"""What linear parts of quantized models share: variables that hold codes, and codes in bytes.

Codes lie in the collection `vars`, so that no optimizer sees them, and have no first value: they
are made from a trained matrix, by `python -m lmjax.quantize`.
"""

import jax
from jax.extend import core
from jax.interpreters import mlir
import jax.numpy as jnp

from lmjax.parallel import facts
from lmjax.parallel.facts import Fact

# Stands for values that do not exist: it has a shape and cannot be computed. Building a model
# traces its initialization, which must succeed; only a run that trains compiles it.
_never = core.Primitive('codes_of_no_matrix')
_never.def_abstract_eval(lambda *, shape, dtype: jax.core.ShapedArray(shape, dtype))


def _refuse(*_, **__):
  raise ValueError(
    'config.model.linear: this part holds the codes of a trained model, made by python -m '
    'lmjax.quantize; it cannot be trained: train with dense(), then quantize'
  )


_never.def_impl(_refuse)
mlir.register_lowering(_never, _refuse)


def frozen(module, name: str, shape: tuple, dtype, fact: Fact):
  """A variable that is not trained, with its fact. Raises ValueError where its first value is
  computed.
  """

  def first():
    value = _never.bind(shape=tuple(shape), dtype=jnp.dtype(dtype))
    return facts.Box(value, fact)

  return module.variable('vars', name, first).value


def where(module) -> str:
  """How a matrix is named to a user."""
  return '/'.join(module.path) or 'this matrix'


def per_byte(bits: int) -> int:
  """Codes in one byte: 4 of two bits, 2 of three or four, 1 of more."""
  return 8 // bits


def packed_size(size: int, bits: int) -> int:
  return -(-size // per_byte(bits))


def pack(codes, bits: int, axis: int):
  """Codes 0 ... 2^bits - 1 as bytes along an axis, the first code lowest; zeros fill the last."""
  n = per_byte(bits)
  x = jnp.moveaxis(codes.astype(jnp.uint8), axis, -1)
  x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % n)])
  shifted = x.reshape(*x.shape[:-1], -1, n) << _shifts(n)
  return jnp.moveaxis(jnp.sum(shifted, axis=-1, dtype=jnp.uint8), -1, axis)


def unpack(data, bits: int, axis: int, size: int):
  """The `size` codes, uint8, that `pack` put into bytes."""
  n = per_byte(bits)
  if n == 1:
    return data
  x = jnp.moveaxis(data, axis, -1)[..., None] >> _shifts(n) & jnp.uint8(2 ** (8 // n) - 1)
  return jnp.moveaxis(x.reshape(*x.shape[:-2], -1)[..., :size], -1, axis)


def _shifts(n: int):
  return jnp.arange(n, dtype=jnp.uint8) * jnp.uint8(8 // n)
