"""The structures of `structured_ffn`: shapes, facts, first values, products, and the full matrix.

n inputs, m outputs, b blocks, r rank. Factors are `down`, then `up`:

  low_rank       down (n, r)             up (r, m)
  block_dense    down (b, n/b, r/b)      up (r, m)
  block_shuffle  down (b, n/b, k)        up (b, k, m/b)      k = min(n, m) / b

Block j of `down` acts on the j-th run of n/b inputs. Between the factors of block_shuffle the b k
numbers are dealt to the blocks of `up` one by one (number i b + l goes to block l, at place i), and
what the blocks give is collected likewise: number s of block l is output s b + l.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lmjax.nn import params
from lmjax.parallel import shard
from lmjax.parallel.facts import Fact

STD = 0.02  # of the Gaussian matrix whose best approximation low_rank starts from
# The axis between the factors of blocks: whole on a mesh like `rank`, which is not its name, since
# two factors that share a rank are taken for a product of two matrices.
INNER = 'width'


class Form(NamedTuple):
  """A structure of one matrix: names and sizes of its sides, the role, rank and blocks."""

  kind: str
  ins: tuple[str, int]
  outs: tuple[str, int]
  role: str
  rank: int | None
  blocks: int | None

  def factors(self) -> dict[str, tuple[Fact, tuple[int, ...]]]:
    """{'down', 'up'}: fact and shape."""
    (a, n), (z, m), b, r = self.ins, self.outs, self.blocks, self.rank
    whole = Fact(('rank', z), ('rank',), self.role), (r, m)
    if self.kind == 'low_rank':
      return dict(down=(Fact((a, 'rank'), (a,), self.role), (n, r)), up=whole)
    split = Fact((None, a, INNER), (a,), self.role)
    if self.kind == 'block_dense':
      up = Fact((INNER, z), (INNER,), self.role), (r, m)
      return dict(down=(split, (b, n // b, r // b)), up=up)
    k = min(n, m) // b
    up = Fact((None, INNER, z), (INNER,), self.role), (b, k, m // b)
    return dict(down=(split, (b, n // b, k)), up=up)

  def check(self, where: str):
    """Raises ValueError, naming the matrix, where rank or blocks do not fit it."""
    n, m = self.ins[1], self.outs[1]
    begin = 'config.model.linear: structured_ffn.'
    if self.rank is not None and self.rank >= min(n, m):
      raise ValueError(
        f'{begin}rank={self.rank} is not accepted: below the sides of every matrix of feed-forward '
        f'is expected, and {where} is {n} x {m}'
      )
    divided = (n,) if self.kind == 'block_dense' else (n, m)
    if self.blocks is not None and any(size % self.blocks for size in divided):
      raise ValueError(
        f'{begin}blocks={self.blocks} is not accepted: a divisor of the sides of every matrix of '
        f'feed-forward is expected, and {where} is {n} x {m}'
      )


def first(form: Form, key) -> dict[str, jax.Array]:
  """First values of the factors, float32.

  low_rank: the best approximation of a Gaussian matrix, its singular values shared evenly. Blocks,
  and the full factor beside them: the orthogonal (or semi-orthogonal) matrix nearest to a Gaussian.
  """
  factors = form.factors()
  if form.kind == 'low_rank':
    u, size, v = jnp.linalg.svd(
      STD * jax.random.normal(key, (form.ins[1], form.outs[1])), full_matrices=False
    )
    root = jnp.sqrt(size[: form.rank])
    return dict(down=u[:, : form.rank] * root, up=root[:, None] * v[: form.rank])

  def nearest(key, shape):
    u, _, v = jnp.linalg.svd(jax.random.normal(key, shape), full_matrices=False)
    return u @ v

  keys = jax.random.split(key)
  return {name: nearest(k, shape) for k, (name, (_, shape)) in zip(keys, factors.items())}


def matrix(down, up):
  """The full matrix (n, m) that factors without stacked axes stand for."""
  if down.ndim == 2:
    return down @ up
  b, _, k = down.shape
  if up.ndim == 3:  # dealt out and collected, as one matrix (b k, m)
    up = jnp.einsum('lis,lt->ilst', up, jnp.eye(b, dtype=up.dtype)).reshape(b * k, -1)
  full = jnp.einsum('bnk,bkm->bnm', down, up.reshape(b, k, -1))
  return full.reshape(-1, full.shape[-1])


def product(form: Form, x, down, up):
  """x through both factors, in the dtype of x."""
  out = params.act((form.outs[0],))
  if form.kind == 'low_rank':
    return params.contract(params.contract(x, down, 1, ('rank',)), up, 1, out)
  lead = (('batch', 'time') + (None,) * x.ndim)[: x.ndim - 1]
  # Blocks are runs of an axis that may be sharded: whole first, then each block is.
  x = shard.shard(x, *lead, None).reshape(*x.shape[:-1], form.blocks, -1)
  h = _blocks(shard.shard(x, *lead, None, *params.act((form.ins[0],))), down, lead, (INNER,))
  h = h.reshape(*h.shape[:-2], -1)
  if form.kind == 'block_dense':
    return params.contract(h, up, 1, out)
  dealt = h.reshape(*h.shape[:-1], -1, form.blocks).swapaxes(-1, -2)
  y = _blocks(dealt, up, lead, out).swapaxes(-1, -2)
  return y.reshape(*y.shape[:-2], -1)


def _blocks(x, w, lead: tuple, out: tuple):
  """x (..., b, i) times w (b, i, o), block by block: (..., b, o)."""
  w = w.astype(x.dtype)
  if shard.mesh().empty:
    y = jnp.einsum('nbi,bio->nbo', x.reshape(-1, *x.shape[-2:]), w)
    return y.reshape(*x.shape[:-1], -1)
  place = shard.spec((*lead, None, *out), gathered=True)
  if shard.is_explicit():
    return jnp.einsum('...bi,bio->...bo', x, w, out_sharding=place)
  y = jnp.einsum('...bi,bio->...bo', x, w)
  return jax.lax.with_sharding_constraint(y, place)
