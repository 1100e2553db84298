"""How each operation of a traced program lies on a mesh, given how its operands do.

A layout is a tuple with the mesh axes of each dimension. The rules are those by which a partitioner
passes placements on: elementwise operations keep them, products join them, what is contracted or
summed over a cut dimension is a partial sum. No rule looks at names of layers, so that any model
that traces can be planned.
"""

import math

import numpy as np

from lmjax.parallel import shard

NOTHING = {'iota', 'random_bits', 'random_seed', 'random_wrap', 'random_fold_in', 'random_split'}
SUMS = {'reduce_sum', 'reduce_max', 'reduce_min', 'argmax', 'argmin', 'reduce_and', 'reduce_or'}


def none(aval) -> tuple[tuple[str, ...], ...]:
  return ((),) * len(aval.shape)


def of_spec(spec, rank: int) -> tuple[tuple[str, ...], ...]:
  """From a partition spec."""
  out = [shard.axes_of(entry) for entry in spec]
  return tuple(out + [()] * (rank - len(out)))


def unique(layout):
  """An axis cuts one dimension; what comes later goes without."""
  seen, out = set(), []
  for axes in layout:
    out.append(tuple(a for a in axes if a not in seen))
    seen |= set(axes)
  return tuple(out)


def ways(layout, sizes) -> int:
  """Into how many pieces it is cut."""
  return math.prod(sizes[a] for axes in layout for a in axes)


def local(aval, layout, sizes) -> float:
  """Bytes of one device's piece."""
  if not hasattr(aval, 'dtype') or not hasattr(aval, 'shape'):
    return 0.0
  size = getattr(aval.dtype, 'itemsize', 4)
  return math.prod(aval.shape) * size / ways(layout, sizes)


def reshaped(old, new, layout):
  """The layout behind a reshape: groups of dimensions with equal products keep their axes, on the
  first dimension of the group that they divide.
  """
  out, i, j = [()] * len(new), 0, 0
  while i < len(old) and j < len(new):
    a, b, ii, jj = old[i], new[j], i + 1, j + 1
    while a != b:
      if a < b and ii < len(old):
        a, ii = a * old[ii], ii + 1
      elif jj < len(new):
        b, jj = b * new[jj], jj + 1
      else:
        break
    axes = tuple(x for d in range(i, ii) for x in layout[d])
    big = [d for d in range(j, jj) if new[d] > 1]
    if axes and big:
      out[big[0]] = axes
    i, j = ii, jj
  return tuple(out)


def product(eqn, left, right):
  """(layout, axes of partial sums) of a dot_general."""
  (lc, rc), (lb, rb) = eqn.params['dimension_numbers']
  batch = [left[d] or right[e] for d, e in zip(lb, rb)]
  free = [left[d] for d in range(len(left)) if d not in lc and d not in lb]
  free += [right[d] for d in range(len(right)) if d not in rc and d not in rb]
  out = unique((*batch, *free))
  kept = {a for axes in out for a in axes}
  summed = {a for d, e in zip(lc, rc) for a in (*left[d], *right[e])} - kept
  return out, summed


def looked_up(eqn, operand, indices):
  """(layout, partial sums) of a gather: rows of a table that may be cut over the vocabulary."""
  dims, rank = eqn.params['dimension_numbers'], len(eqn.outvars[0].aval.shape)
  offsets = list(dims.offset_dims)
  kept = [d for d in range(len(operand)) if d not in dims.collapsed_slice_dims]
  kept = [d for d in kept if d not in dims.operand_batching_dims]
  out, rows = [()] * rank, iter(indices)
  for d in range(rank):
    out[d] = operand[kept[offsets.index(d)]] if d in offsets else next(rows, ())
  out = unique(out)
  found = {a for axes in out for a in axes}
  return out, {a for d in dims.collapsed_slice_dims for a in operand[d]} - found


def passed_on(eqn, layouts):
  """(layout, partial sums) of an operation with one result that is no loop or call."""
  name, aval = eqn.primitive.name, eqn.outvars[0].aval
  rank = len(getattr(aval, 'shape', ()))
  if name in NOTHING or not rank and not name.startswith(('reduce', 'dot', 'arg')):
    return ((),) * rank, set()
  if name == 'dot_general':
    return product(eqn, *layouts[:2])
  if name == 'sharding_constraint':
    return of_spec(eqn.params['sharding'].spec, rank), set()
  if name == 'broadcast_in_dim':
    out, given = [()] * rank, eqn.invars[0].aval.shape
    for d, e in enumerate(eqn.params['broadcast_dimensions']):
      out[e] = layouts[0][d] if given[d] == aval.shape[e] else ()
    return tuple(out), set()
  if name == 'reshape':
    return reshaped(eqn.invars[0].aval.shape, aval.shape, layouts[0]), set()
  if name == 'transpose':
    return tuple(layouts[0][d] for d in eqn.params['permutation']), set()
  if name == 'squeeze':
    gone = eqn.params['dimensions']
    return tuple(a for d, a in enumerate(layouts[0]) if d not in gone), set()
  if name in SUMS:
    gone = eqn.params['axes']
    kept = tuple(a for d, a in enumerate(layouts[0]) if d not in gone)
    return kept, {a for d in gone for a in layouts[0][d]}
  if name == 'gather':
    return looked_up(eqn, *layouts[:2])
  if name.startswith('scatter'):
    used = {a for axes in layouts[0] for a in axes}
    return layouts[0], {a for axes in layouts[2] for a in axes} - used
  return elementwise(eqn, layouts, aval), set()


def elementwise(eqn, layouts, aval):
  """Per dimension the axes of the first operand that has any, of those with the result's rank."""
  rank, out = len(aval.shape), [()] * len(aval.shape)
  for var, layout in zip(eqn.invars, layouts):
    if len(layout) != rank:
      continue
    for d in range(rank):
      same = var.aval.shape[d] == aval.shape[d] or eqn.primitive.name in ('concatenate', 'pad')
      if same or aval.shape[d] % max(1, len(layout[d])) == 0:
        out[d] = out[d] or layout[d]
  return unique(out)


def size_of(aval) -> int:
  return int(np.prod(getattr(aval, 'shape', ()), dtype=np.int64))
