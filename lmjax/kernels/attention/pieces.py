"""Kernels that the partitioner cannot cut: each device calls one for its own rows and heads."""

import math

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec as P

from lmjax.parallel import shard


def refuses(q, k) -> str:
  """Why queries (B, T, H, K) and keys (B, S, G, K) cannot be cut on this mesh, or ''."""
  if not _cut():
    return ''
  if shard.is_explicit():
    return "such kernels need config.mesh.mode='auto'"
  del k  # heads of keys that do not divide are repeated
  batch, heads = _axes()
  for name, n, axes in (('rows', q.shape[0], batch), ('heads', q.shape[2], heads)):
    if n % _size(axes):
      return f'{n} {name} do not divide over {_size(axes)} devices'
  return ''


def run(f, q_BTHK, k_BSGK, v_BSGK, *rows):
  """f of the pieces, (B, T, H, K); rows: further arrays (B, ...), or None."""
  if not _cut():
    return f(q_BTHK, k_BSGK, v_BSGK, *rows)
  batch, heads = _axes()
  if many := repeats(q_BTHK.shape[2], k_BSGK.shape[2], _size(heads)):
    k_BSGK, v_BSGK = (jnp.repeat(x, many, axis=2) for x in (k_BSGK, v_BSGK))
  wide = P(batch, None, heads, None)
  ins = wide, wide, wide, *(None if x is None else P(batch) for x in rows)
  return shard.by_hand(f, ins, wide)(q_BTHK, k_BSGK, v_BSGK, *rows)


def repeats(heads: int, groups: int, devices: int) -> int:
  """How often heads of keys are repeated so that each device has those of its queries; 0 for not at
  all.
  """
  if groups % devices == 0:
    return 0
  return next(n for n in range(1, heads + 1) if groups * n % devices == 0)


def _cut() -> bool:
  """Whether the partitioner has charge of anything here."""
  return any(t != AxisType.Manual for t in shard.mesh().axis_types)


def _axes():
  return shard.spec(('batch', 'heads'))


def _size(axes) -> int:
  return math.prod(shard.mesh().shape[a] for a in shard.axes_of(axes))


def held(q, k) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
  """Queries and keys of one device."""
  batch, heads = map(_size, _axes()) if _cut() else (1, 1)
  many = repeats(q.shape[2], k.shape[2], heads) or 1
  one = lambda x, n: jax.ShapeDtypeStruct(
    (x.shape[0] // batch, x.shape[1], n // heads, x.shape[3]), x.dtype
  )
  return one(q, q.shape[2]), one(k, k.shape[2] * many)
