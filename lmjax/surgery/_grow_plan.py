"""How every parameter of one model grows into that of another, from the facts of both."""

from typing import NamedTuple

import numpy as np

from lmjax.surgery import _grow
from lmjax.surgery import _grow_fits

FIXED = ('vocab', 'position', 'head_dim')
GROWING = ('embed', 'mlp', 'heads', 'kv_heads')


class Leaf(NamedTuple):
  """A parameter of both models."""

  fact: _grow.Fact
  old: tuple[int, ...]
  new: tuple[int, ...]


def plan(old, new, rng, *, how: str, depth: str, ahead: bool) -> dict[_grow.Keys, _grow.Growth]:
  """The growth of each parameter, by its keys. Raises ValueError for models that it does not suit.

  Args:
    old, new: `kinds.Stage`. how: 'random' or 'balanced'; depth: see `_grow.depth`; ahead: whether
      added outputs come from the next layer.
  """
  _grow_fits.check(old, new)
  return _Plan(old, new, _grow.Dims(how, rng), depth, ahead).made()


class _Plan:
  def __init__(self, old, new, dims: _grow.Dims, depth: str, ahead: bool):
    params = [_grow_fits.flat(s.variables['params']) for s in (old, new)]
    facts = [_grow_fits.flat(s.facts['params']) for s in (old, new)]
    _grow_fits.same_names(*params)
    self.old, self.new = old.model, new.model
    self.dims, self.depth, self.ahead = dims, depth, ahead
    self.leaves = {}
    for keys, fact in facts[1].items():
      if facts[0][keys] != fact:
        raise ValueError(f'{name(keys)} is another matrix there than here: {_grow_fits.LIKE}')
      self.leaves[keys] = Leaf(fact, *(tuple(p[keys].shape) for p in params))

  def made(self) -> dict[_grow.Keys, _grow.Growth]:
    grown = {keys: self._one(keys, leaf) for keys, leaf in self.leaves.items()}
    by = self.old.scheme.init.logit_scale() / self.new.scheme.init.logit_scale()
    if self.old.embed.fact('tied'):
      if by != 1 or self.old.width != self.new.width:
        self._read_once(grown, by)
    else:
      for keys, growth in grown.items():
        if growth.fact.role == 'unembed':
          grown[keys] = growth._replace(factor=growth.factor * by)
    return grown

  def _one(self, keys, leaf: Leaf) -> _grow.Growth:
    dims, layers = {}, None
    for axis, axis_name in enumerate(leaf.fact.names):
      old, new = leaf.old[axis], leaf.new[axis]
      if axis_name == 'layers':
        assert axis == 0, keys
        layers = _grow.depth(old, new, self.depth)
      elif (dim := self._axis(keys, leaf, axis_name, old, new)) is not None:
        dims[axis] = dim
    factor = np.ones((1,) * len(leaf.new))
    for axis, dim in dims.items():
      if leaf.fact.names[axis] in leaf.fact.inputs:
        factor = factor / _grow.along(dim.counts, axis, factor.ndim)
    if dims and leaf.fact.role == 'other':
      raise ValueError(
        f'{name(keys)} grows from {leaf.old} to {leaf.new}, and its use is not known'
      )
    ahead = self.ahead and leaf.fact.role in ('hidden', 'residual', 'bias')
    return _grow.Growth(dims, layers, factor, ahead, leaf.fact)

  def _axis(self, keys, leaf: Leaf, axis_name, old: int, new: int) -> _grow.Dim | None:
    """The dimension of an axis, or None where it stays as it is."""
    if axis_name is not None and axis_name not in GROWING + FIXED:
      raise ValueError(
        f'{name(keys)} has the axis {axis_name!r}: full matrices of a transformer are expected, '
        f'whose axes are {", ".join(GROWING + FIXED)}'
      )
    if new < old:
      raise ValueError(
        f'{name(keys)} has shape {leaf.old} there and {leaf.new} here: a model that is nowhere '
        'smaller is expected'
      )
    widths = self.old.width, self.new.width
    if axis_name == 'embed' and (old, new) != widths:
      raise ValueError(f'{name(keys)} has the axis embed of {old}, which is not the width')
    if axis_name in ('heads', 'kv_heads'):
      return self._heads(keys, axis_name)
    if old == new:
      return None
    if axis_name is None and leaf.fact.role in ('norm', 'bias') and (old, new) == widths:
      axis_name = 'embed'  # norms do not name the axis of the width
    if axis_name not in GROWING:
      raise ValueError(
        f'{name(keys)} has shape {leaf.old} there and {leaf.new} here: of its axes only the width, '
        'hidden units, heads and layers can grow'
      )
    return self.dims.plain(axis_name, old, new)

  def _heads(self, keys, axis_name: str) -> _grow.Dim | None:
    """Heads, by all matrices of their mixer."""
    heads = self._size(keys[:-2], 'heads')
    kv = self._size(keys[:-2], 'kv_heads') or heads
    if heads[0] == heads[1] and kv[0] == kv[1]:
      return None
    group = heads[0] // kv[0], heads[1] // kv[1]
    where = f'{"/".join(keys[:-2])}: {heads[0]} heads with {kv[0]} of keys and values there, '
    where += f'{heads[1]} with {kv[1]} here: '
    if group[1] < group[0] or kv[1] < kv[0]:
      raise ValueError(f'{where}at least as many of each, and in each group, are expected')
    biased = _grow_fits.biased_by_head(self.old)
    if biased:
      raise ValueError(
        f'{where}{biased} gives each head a bias by its number, so that as many are expected'
      )
    return self.dims.heads(kv, group)[('heads', 'kv_heads').index(axis_name)]

  def _size(self, scope, axis_name: str) -> tuple[int, int] | None:
    for keys, leaf in self.leaves.items():
      if keys[:-2] == scope and axis_name in leaf.fact.names:
        axis = leaf.fact.names.index(axis_name)
        return leaf.old[axis], leaf.new[axis]
    return None

  def _read_once(self, grown: dict, by: float):
    """A table that is also the output matrix is copied; what it reads is divided instead, in the
    norm that gives it.
    """
    found = [k for k in self._outlet() if k in grown]
    if not any(grown[k].fact.role == 'norm' for k in found):
      raise ValueError(
        f'config.model.embed={self.new.embed} is one table for both ends, copied as the embedding '
        'needs it: a norm with a gain behind the last layer is expected, which can be divided as '
        'the logits need it'
      )
    width = grown[found[0]].dims
    for keys in found:
      growth = grown[keys]
      factor = np.ones(self.leaves[keys].new)
      counts = next((dim.counts for dim in width.values()), np.ones(self.new.width))
      factor[-1 if growth.layers is not None else ...] = by / counts
      grown[keys] = growth._replace(factor=factor)

  def _outlet(self):
    """Keys of the norm whose output is what the unembedding reads."""
    at: tuple[str, ...] = ('final_norm',)
    if self.new.final_norm is None:
      last, block = len(self.new.segments) - 1, self.new.segments[-1].pattern
      if self.new.block(block[-1]).name != 'post' or self.new.segments[-1].shared:
        return []
      at = (f'segment_{last}', f'{len(block) - 1}_{block[-1]}', 'norm_ffn')
    return [(*at, 'scale'), (*at, 'bias')]


def name(keys) -> str:
  return '/'.join(keys)
