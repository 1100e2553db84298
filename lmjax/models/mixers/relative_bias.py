"""Attention with a learned bias for each distance, one table for all layers of a stack.

  logits(t, s) += E[bucket(s - t), head]

  bucket(-d) = d                                                      for d < m = n / 2
             = min(n - 1, m + floor((n - m) log(d / m) / log(distance / m)))      beyond

for n = `buckets` where `inner` is causal: near distances have buckets of their own, far ones share
some, all from `distance` on the last. Where it is not causal, n is half of that, and later tokens
have the other half in the same way, behind those of earlier ones. E (buckets, heads).

Raffel et al., 2020 (arXiv:1910.10683, section 2.1), with its defaults. T5 has no factor in front of
its logits either: that is the init part's affair (`t5`). `shared=False` gives each layer a table of
its own. The model's position acts as it does without this part.
"""

import dataclasses
import functools
import math
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lmjax import kinds
from lmjax.nn import params
from lmjax.parallel import shard
from lmjax.parallel.facts import Fact
from lmjax.registry import LARGEST, Part, register


def bucket(gaps: np.ndarray, buckets: int, distance: int, causal: bool) -> np.ndarray:
  """The bucket of each gap, place of the key less that of the query; int, as `gaps`."""
  n = buckets if causal else buckets // 2
  near, away = n // 2, np.maximum(-gaps, 0) if causal else np.abs(gaps)
  # Logarithms of whole quotients must not fall below what they are.
  share = np.log(np.maximum(away, near) / near) / math.log(distance / near) + 1e-9
  far = np.minimum(near + (share * (n - near)).astype(int), n - 1)
  return np.where(away < near, away, far) + (0 if causal else n * (gaps > 0))


class Table(nn.Module):
  """E (buckets, heads)."""

  buckets: int
  heads: int

  @nn.compact
  def __call__(self, ctx):
    fact = Fact(('position', 'heads'), ('position',), 'position')
    table = params.param(self, 'table', (self.buckets, self.heads), fact, ctx.scheme)
    return shard.gather(table, fact.names).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class Distances:
  """A position that adds the table's bias to what `own` does, the model's position.

  in_place: keys stand where queries do, and within a document positions count places.
  """

  own: Any
  table_NH: jax.Array
  distance: int
  causal: bool
  in_place: bool

  def rotate(self, x_BTHK, positions_BT):
    return self.own.rotate(x_BTHK, positions_BT)

  def bias(self, heads, positions_BT, positions_BS):
    bias_BHTS = self._in_place if self.in_place else self._anywhere
    bias_BHTS = bias_BHTS(positions_BT, positions_BS)
    own = self.own.bias(heads, positions_BT, positions_BS)
    return bias_BHTS if own is None else bias_BHTS + own

  def _of(self, gaps: np.ndarray, table_NH):
    return table_NH[bucket(gaps, table_NH.shape[0], self.distance, self.causal)].T

  def _in_place(self, positions_BT, positions_BS):
    """(1, H, T, T), the same along each diagonal: one row of 2 T gaps is laid T times in a line
    that is then cut to rows of 2 T - 1. Its gradient is a sum; that of a look-up would be T^2
    additions in so few places.
    """
    del positions_BS
    steps = positions_BT.shape[1]
    gaps = np.arange(2 * steps)
    gaps = np.where(gaps < steps, gaps, gaps - 2 * steps)

    def laid(table_NH):
      row_HL = self._of(gaps, table_NH)
      line = jnp.tile(row_HL, (1, steps))[:, : steps * (2 * steps - 1)]
      return line.reshape(-1, steps, 2 * steps - 1)[None, :, :, :steps]

    return shard.automatic(laid, shard.spec((None, 'heads', None, None)))(self.table_NH)

  def _anywhere(self, positions_BT, positions_BS):
    """(B, H, T, S), looked up."""
    most = self.distance

    def found(table_NH, positions_BT, positions_BS):
      gap_BTS = positions_BS[:, None, :] - positions_BT[:, :, None]
      of = self._of(np.arange(-most, most + 1), table_NH)
      return jnp.moveaxis(of[:, jnp.clip(gap_BTS, -most, most) + most], 0, 1)

    rows = 'batch' if max(positions_BT.shape[0], positions_BS.shape[0]) > 1 else None
    where = shard.spec((rows, 'heads', None, None))
    return shard.automatic(found, where)(self.table_NH, positions_BT, positions_BS)


def inner_fact(key: str):
  return lambda args: args['inner'].fact(key)


def table_of(args, width: int, name: str) -> Table:
  """The stack's table."""
  heads, _ = args['inner'](parent=None).sizes(width)
  return Table(args['buckets'], heads, name=name)


INNER = ('causal', 'segments', 'cache', 'prefix', 'window')


@register(
  'mixer',
  **{key: inner_fact(key) for key in INNER},
  shared=lambda a: functools.partial(table_of, a) if a['shared'] else None,
)
class RelativeBias(nn.Module):
  """`inner`, with a bias by distance."""

  inner: Annotated[Part, 'mixer'] = 'gqa()'
  buckets: int = 32
  distance: int = 128
  shared: bool = True

  @staticmethod
  def check(inner, buckets, distance, **_):
    other = inner.fact('cross') or inner.fact('recurrent') or not hasattr(inner.obj, 'sizes')
    if other or dict(inner.args).get('position') is not None:
      raise ValueError(
        f'inner={inner}: a mixer with heads over its own text and without a position of its own is '
        'expected, such as gqa(head_dim=64)'
      )
    least = 4 if not inner.fact('causal') else 2
    if not least <= buckets <= LARGEST[int] or buckets % (least // 2):
      raise ValueError(
        f'buckets={buckets}: a number from {least} is expected, even where inner is not causal'
      )
    near = buckets // least
    if not near < distance <= 1 << 20:
      raise ValueError(
        f'distance={distance}: more than {near}, the distances with buckets of their own, and at '
        f'most {1 << 20} is expected'
      )

  @nn.nowrap
  def init_cache(self, kind, batch, length, width, dtype):
    return self.inner(parent=None).init_cache(kind, batch, length, width, dtype)

  @nn.nowrap
  def mixing_flops(self, width, length):
    return self.inner(parent=None).mixing_flops(width, length)

  @nn.compact
  def __call__(self, x_BTD, ctx, cache=None):
    inner = self.inner(name='inner')
    if self.shared and ctx.shared is None:
      raise kinds.Unsupported(
        'mixer relative_bias: its table is that of a stack, and there is none here; shared=False '
        'gives each layer its own'
      )
    table = ctx.shared
    if not self.shared:
      table = Table(self.buckets, inner.sizes(x_BTD.shape[-1])[0], name='bias')(ctx)
    position = Distances(
      ctx.scheme.position,
      table,
      self.distance,
      self.inner.fact('causal'),
      in_place=cache is None and not ctx.gaps,
    )
    scheme = dataclasses.replace(ctx.scheme, position=position)
    return inner(x_BTD, ctx.replace(scheme=scheme), cache)
