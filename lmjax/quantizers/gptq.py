"""GPTQ: columns are rounded one after another, and each one's error is taken up by those behind.

  H = (2/n) sum x x^T over calibration inputs, + damp mean(diag H) I;  H^-1 = U^T U, U upper
  for j = 1 ... I:  q_j = round(w_j);  e = (w_j - q_j) / U_jj;  w_k -= e U_jk for k > j

for each output alone, all outputs at once, W as (O, I). Inputs that are always 0 have no say: their
H_jj is set to 1 and their column to 0, before scales are fitted, so that it widens none. Updates of
columns beyond a block of `block` are made once a block, which changes nothing but the time. A
group's scale is that of its columns when its first one is met, updated by all before; without
groups it is that of the matrix as it was given.

`act_order` takes columns by descending H_jj. Groups stay neighbours in the given order, so that no
index is stored, and have the scales of the matrix as it was given.

Layers come in order, with inputs from the layers before as they are when quantized. The measure is
tr((W - Q) H (W - Q)^T). Everything is in float32; U comes from one Cholesky factor of H with its
axes reversed, H = R R^T and U = R^-1, which never forms H^-1.

Frantar et al., 2022 (arXiv:2210.17323): damp 0.01, block 128, 128 rows of 2048 tokens.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.quantizers import _grid
from lmjax.nn import bits as bits_lib
from lmjax.registry import register


def factor(hessian_II, damp: float):
  """(U upper with inv(H + damp mean(diag H) I) = U^T U, whether each input is dead)."""
  diagonal = jnp.diag(hessian_II)
  dead = diagonal == 0
  h = hessian_II + jnp.diag(jnp.where(dead, 1.0, 0.0))
  h = h + damp * jnp.mean(jnp.diag(h)) * jnp.eye(len(h), dtype=h.dtype)
  r = jnp.linalg.cholesky(h[::-1, ::-1])[::-1, ::-1]
  eye = jnp.eye(len(h), dtype=h.dtype)
  return jax.scipy.linalg.solve_triangular(r, eye, lower=False), dead


def proxy(kernel_IO, rounded_IO, hessian_II):
  """tr((W - Q) H (W - Q)^T)."""
  off = kernel_IO - rounded_IO
  return jnp.sum(off * (hessian_II @ off))


def block_size(block: int, group: int | None) -> int:
  """Columns in a block: where a group begins, all updates before it must have been made."""
  if group is None:
    return block
  return next(n for n in range(min(block, group), 0, -1) if group % n == 0)


@functools.partial(
  jax.jit, static_argnames=('bits', 'symmetric', 'group', 'block', 'clip', 'fixed')
)
def columns(
  w_OI, upper_II, order_I, *, bits, symmetric, group, block, clip, fixed
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """(codes (O, I) in the given order, scale and zero (groups, O)).

  w_OI, upper_II: in the order of `order_I`, which says what place each column had. fixed: scales
    are those of the matrix as it was given, in its own order.
  """
  outs, size = w_OI.shape
  width, count = block_size(block, group), size // (group or size)
  given = jnp.zeros_like(w_OI).at[:, order_I].set(w_OI)
  scale_GO, zero_GO = (
    a[..., 0].T for a in _grid.fit(given.reshape(outs, count, -1), bits, symmetric, 2, clip)
  )
  group_I = order_I // (group or size)
  spare = -size % width  # columns of zeros, whose errors are zero
  w = jnp.pad(w_OI, ((0, 0), (0, spare)))
  upper = jnp.pad(upper_II, ((0, spare), (0, spare))) + jnp.diag(
    jnp.where(jnp.arange(size + spare) < size, 0.0, 1.0)
  )
  group_I = jnp.pad(group_I, (0, spare))

  def column(j, carry):
    part, rows, groups, scales, zeros, codes, errors = carry
    s, z = scales[groups[j]], zeros[groups[j]]
    code = _grid.encode(part[:, j], s, z, bits)
    error = (part[:, j] - _grid.decode(code, s, z)) / rows[j, j]
    part = part - error[:, None] * rows[j]
    return part, rows, groups, scales, zeros, codes.at[:, j].set(code), errors.at[:, j].set(error)

  def one(b, carry):
    w, scales, zeros, codes = carry
    start = b * width
    if group is not None and not fixed:
      fresh = jax.lax.dynamic_slice(w, (0, start // group * group), (outs, group))
      s, z = (a[:, 0] for a in _grid.fit(fresh, bits, symmetric, 1, clip))
      begins = start % group == 0
      scales = scales.at[start // group].set(jnp.where(begins, s, scales[start // group]))
      zeros = zeros.at[start // group].set(jnp.where(begins, z, zeros[start // group]))
    rows = jax.lax.dynamic_slice(upper, (start, 0), (width, size + spare))
    part = jax.lax.dynamic_slice(w, (0, start), (outs, width))
    square = jax.lax.dynamic_slice(rows, (0, start), (width, width))
    groups = jax.lax.dynamic_slice(group_I, (start,), (width,))
    empty = jnp.zeros_like(part)
    *_, found, errors = jax.lax.fori_loop(
      0, width, column, (part, square, groups, scales, zeros, empty, empty)
    )
    later = jnp.arange(size + spare) >= start + width
    w = w - errors @ jnp.where(later, rows, 0.0)
    return w, scales, zeros, jax.lax.dynamic_update_slice(codes, found, (0, start))

  first = (w, scale_GO, zero_GO, jnp.zeros_like(w))
  _, scales, zeros, codes = jax.lax.fori_loop(0, (size + spare) // width, one, first)
  return jnp.zeros_like(w_OI).at[:, order_I].set(codes[:, :size]), scales, zeros


@register('quantizer', calibration=True)
@dataclasses.dataclass(frozen=True)
class Gptq:
  """Rounds columns in turn, with compensation by second-order statistics of the inputs."""

  bits: int
  group: int | None = None
  symmetric: bool = False
  clip: bool = False
  act_order: bool = False
  damp: float = 0.01
  block: int = 128

  @staticmethod
  def check(bits, group, damp, block, **_):
    bits_lib.checked(bits, group, 'channel')
    if not 0 < damp < 1e3:
      raise ValueError(f'damp={damp}: a positive number below 1000 is expected')
    if block < 1:
      raise ValueError(f'block={block}: a positive number of columns is expected')

  @property
  def linear(self) -> str:
    return f'quantized(bits={self.bits}, group={self.group}, symmetric={self.symmetric})'

  def quantize(self, kernel_IO, inputs) -> dict:
    h = jnp.asarray(inputs.hessian_II, jnp.float32)
    order_I = jnp.arange(len(h))
    if self.act_order:
      order_I = jnp.argsort(-jnp.diag(h), stable=True)
    with jax.default_matmul_precision('float32'):
      upper, dead = factor(h[order_I][:, order_I], self.damp)
      if not np.isfinite(upper).all():
        raise ValueError(
          f'gptq: the statistics of the inputs have no Cholesky factor with damp={self.damp}; give '
          'a larger damp, or more rows'
        )
      w_OI = jnp.asarray(kernel_IO, jnp.float32).T[:, order_I]
      codes_OI, scale, zero = columns(
        jnp.where(dead, 0.0, w_OI),
        upper,
        order_I,
        bits=self.bits,
        symmetric=self.symmetric,
        group=self.group,
        block=min(self.block, len(h)),
        clip=self.clip,
        fixed=self.act_order,
      )
    return _grid.found(codes_OI.T, scale, zero)
