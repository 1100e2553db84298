"""Which entry of a grown parameter is which entry of the smaller one, and by what factor.

A dimension that grows has a mapping g from places of the large model to places of the small one,
the same for every parameter that has the dimension; C_i counts the places that map to i. From a
parameter's fact (axis names, contracted axes) follow the entries that it copies and the factor s of
each: 1 / C along contracted axes, 1 along the others.

What a parameter's gradient becomes follows from the factor. An entry W_i stands in n places (the
product of C over all axes that grow), each holding s W_i. Where the function is preserved, moving
all of them by s d moves it as d does W_i, and equal duplicates share alike:

  n s G' = G,   hence   G' = G / (n s)

that is, copied along contracted axes and divided by C along the others. Squares of gradients take
the square of that factor.
"""

import dataclasses
from typing import NamedTuple
import zlib

import jax
import numpy as np

from lmjax.parallel.facts import Fact

Keys = tuple[str, ...]


class Dim(NamedTuple):
  """One dimension that grows.

  source: g, int (new size,). fresh: where a place is not the first copy of its source. ahead: where
    its values belong to the next layer, if there is one to take them from.
  """

  source: np.ndarray
  fresh: np.ndarray
  ahead: np.ndarray

  @property
  def counts(self) -> np.ndarray:
    """C of each place of the large model: how many places have its source."""
    return np.bincount(self.source)[self.source]


class Growth(NamedTuple):
  """How one parameter grows.

  dims: axis -> dimension, of the axes that grow. layers: which old layer each new one is, int
    (new layers,), or None without an axis of layers (which is the first). factor: s, over the new
    shape. next_layer: whether places that are `ahead` come from the layer behind it. fact: of the
    parameter.
  """

  dims: dict[int, Dim]
  layers: np.ndarray | None
  factor: np.ndarray
  next_layer: bool
  fact: Fact

  def gathered(self, x: np.ndarray) -> np.ndarray:
    """The entries that are copied, without their factor; float32 or wider."""
    x = np.asarray(x)
    x = x.astype(np.promote_types(x.dtype, np.float32))
    out = self._wide(x)
    if self.next_layer and self.layers is not None:
      behind = self._wide(np.concatenate([x[1:], x[-1:]]))  # the last layer has itself behind it
      for axis in self.outs():
        out = np.where(along(self.dims[axis].ahead, axis, out.ndim), behind, out)
    return out if self.layers is None else out[self.layers]

  def _wide(self, x):
    for axis, dim in self.dims.items():
      x = np.take(x, dim.source, axis)
    return x

  def outs(self) -> list[int]:
    """The growing axes that activations leave by."""
    names = self.fact.names
    return [i for i in self.dims if names[i] is not None and names[i] not in self.fact.inputs]

  def value(self, x) -> np.ndarray:
    """The grown parameter."""
    out = self.gathered(x)
    return (out * self.factor).astype(out.dtype)

  def moment(self, x, order: int) -> np.ndarray:
    """The grown mean of the gradient's power `order`."""
    copies = 1.0
    for axis, dim in self.dims.items():
      copies = copies * along(dim.counts, axis, len(self.fact.names))
    out = self.gathered(x)
    return (out / (copies * self.factor) ** order).astype(out.dtype)

  def fresh(self, axes) -> np.ndarray:
    """Where an entry is no first copy along any of these axes; broadcasts to the new shape."""
    out = np.zeros((1,) * len(self.fact.names), bool)
    for axis in axes:
      out = out | along(self.dims[axis].fresh, axis, out.ndim)
    return out


def along(x: np.ndarray, axis: int, ndim: int) -> np.ndarray:
  """A vector as an array of `ndim` axes that varies along one of them."""
  return x.reshape(tuple(-1 if i == axis else 1 for i in range(ndim)))


def generator(rng, name: str) -> np.random.Generator:
  """Random numbers for one use, whatever else is drawn from the key."""
  words = np.asarray(jax.random.key_data(rng)).reshape(-1)
  return np.random.default_rng([*map(int, words), zlib.crc32(name.encode())])


def sources(old: int, new: int, how: str, draw: np.random.Generator) -> np.ndarray:
  """g: the identity on the first `old` places; then uniform, or round and round ('balanced')."""
  more = draw.integers(old, size=new - old) if how == 'random' else np.arange(old, new) % old
  return np.concatenate([np.arange(old), more])


def plain(old: int, new: int, how: str, draw: np.random.Generator) -> Dim:
  added = np.arange(new) >= old
  return Dim(sources(old, new, how, draw), added, added)


def heads(kv: tuple[int, int], group: tuple[int, int], how: str, draw) -> tuple[Dim, Dim]:
  """(heads, heads of keys and values), each size (old, new); `group` heads read one of the latter.

  A head goes to a head whose keys are those that its own go to: kv heads are mapped first, then the
  heads within each group. A new head in an old group is not `ahead`: its keys are of this layer.
  """
  kv_dim = plain(*kv, how, draw)
  within = np.stack([sources(*group, how, draw) for _ in range(kv[1])])
  added = np.broadcast_to(kv_dim.fresh[:, None], within.shape)
  fresh = added | (np.arange(group[1]) >= group[0])
  source = kv_dim.source[:, None] * group[0] + within
  return Dim(source.reshape(-1), fresh.reshape(-1), added.reshape(-1)), kv_dim


def depth(old: int, new: int, how: str) -> np.ndarray:
  """Which old layer each new one is. 'stack': all of them again and again, what is left over from
  the top; 'interleave': each several times in a row.
  """
  if how == 'interleave':
    if new % old:
      raise ValueError(
        f'{old} layers there and {new} here: a multiple is expected by depth="interleave"'
      )
    return np.repeat(np.arange(old), new // old)
  return np.concatenate([np.tile(np.arange(old), new // old), np.arange(old - new % old, old)])


@dataclasses.dataclass
class Dims:
  """The dimensions of one growth, each drawn once."""

  how: str
  rng: jax.Array

  def plain(self, name: str, old: int, new: int) -> Dim:
    return plain(old, new, self.how, generator(self.rng, f'{name} {old} {new}'))

  def heads(self, kv: tuple[int, int], group: tuple[int, int]) -> tuple[Dim, Dim]:
    return heads(kv, group, self.how, generator(self.rng, f'heads {kv} {group}'))
