"""Which array of lmjax is which tensor: rows of data, read in both directions.

  Row('embed/table', 'wte.weight')                              one array, one tensor
  Row('mixer/q/kernel', 'q_proj.weight', 'D H K -> (H K) D')    in another layout, see `_axes`
  Row(('mixer/q/kernel', 'mixer/k/kernel', 'mixer/v/kernel'), 'c_attn.weight',
      'P D H K -> D (P H K)')                                   several arrays, stacked on axis P

Layers' arrays are stacked in lmjax, and tensors of their own elsewhere: {n} is the layer. A row
counts where the model has its arrays; a model that has arrays without a row is refused. The axis V
may be longer here: rows of tables are rounded up, and those above the vocabulary are never
predicted.
"""

import dataclasses
from typing import Any, Iterator, Mapping

import numpy as np

from lmjax.interop.hf import _axes
from lmjax.interop.hf import _folder

MOST = 8  # problems that a message shows


@dataclasses.dataclass(frozen=True)
class Row:
  """One tensor, and the array or arrays that it is made of; beside, unless: an array that must be
  there too, or must not.
  """

  arrays: str | tuple[str, ...]
  name: str
  axes: str = ''
  beside: str = ''
  unless: str = ''


@dataclasses.dataclass(frozen=True)
class Table:
  """outer: rows outside of layers; layer: rows of every layer. stacks: the same, by name, where an
    architecture has several; shared: of what layers of a stack have in common.
  prefix: what names may lack, all at once, as files of the bare model do. dropped: tensors that
    hold nothing of the model, {n} being a number. copies: a tensor that may be there when
    embeddings are tied, and the one it must be equal to then.
  """

  outer: tuple[Row, ...]
  layer: tuple[Row, ...] = ()
  prefix: str = ''
  dropped: tuple[str, ...] = ()
  copies: tuple[tuple[str, str], ...] = ()
  spelled: tuple[tuple[str, str], ...] = ()
  stacks: Mapping[str, tuple[Row, ...]] = dataclasses.field(default_factory=dict)
  shared: Mapping[str, tuple[Row, ...]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Piece:
  """A tensor of one model: its shape there, and where its arrays lie here, of which shape.

  at: paths below `params`; index: the layer's place in them, None outside of layers.
  """

  name: str
  shape: tuple[int, ...]
  axes: str
  at: tuple[tuple[str, ...], ...]
  index: int | None
  inner: tuple[int, ...]


def pieces(table: Table, run: Any) -> list[Piece]:
  """Every tensor of a run's model, layers in order. Raises ValueError for arrays without a row."""
  shapes = {k: a.shape for k, a in leaves(run.shapes['params'])}
  out, used = [], set()
  rows = [(row, (), None, None) for row in table.outer]
  for above, model in stacks(run):
    own = table.stacks.get(above[0], ()) if above else table.layer
    rows += [(r, above + at, i, n) for n, (at, i) in enumerate(layers(model)) for r in own]
    common = (*above, f'shared_{model.segments[0].pattern[0]}')
    rows += [(row, common, None, None) for row in table.shared.get(above[0] if above else '', ())]
  for row, above, index, n in rows:
    found = _piece(row, above, index, n, shapes, run.model.vocab)
    if found is not None:
      out.append(found)
      used |= set(found.at)
  left = ['/'.join(k) for k in shapes if k not in used]
  if left:
    raise ValueError(f'parameters {_folder.some(left)} have no counterpart')
  return out


def _piece(row: Row, above: tuple, index: int | None, n: int | None, shapes: Mapping, vocab: int):
  """None where the model does not have the arrays."""
  names = (row.arrays,) if isinstance(row.arrays, str) else row.arrays
  at = tuple((*above, *name.split('/')) for name in names)
  has = lambda name: (*above, *name.split('/')) in shapes
  if not all(p in shapes for p in at) or (row.beside and not has(row.beside)):
    return None
  if row.unless and has(row.unless):
    return None
  inner = shapes[at[0]] if index is None else shapes[at[0]][1:]
  inner = inner if len(at) == 1 else (len(at), *inner)
  axes = row.axes or ' '.join(letters := 'abcdefgh'[: len(inner)]) + ' -> ' + ' '.join(letters)
  own = _axes.parse(axes)[0]
  inner = tuple(vocab if a == 'V' else s for a, s in zip(own, inner, strict=True))
  return Piece(row.name.format(n=n), _axes.there(inner, axes), axes, at, index, inner)


def stacks(run: Any) -> list[tuple[tuple[str, ...], Any]]:
  """(where its parameters lie, the model with it) of each stack of a run's architecture."""
  if not run.model.stacks:
    return [((), run.model)]
  return [(p.prefix, p.model) for p in run.architecture.passes(1, 1)]


def layers(model: Any) -> list[tuple[tuple[str, str], int]]:
  """Where the parameters of each layer lie: their path, and the place in the stacked arrays. Raises
  ValueError where layers share theirs.
  """
  out = []
  for k, s in enumerate(model.segments):
    if s.shared:
      raise ValueError('config.model.stack: layers that share their parameters have no counterpart')
    for i in range(s.repeats):
      out += [((f'segment_{k}', f'{j}_{name}'), i) for j, name in enumerate(s.pattern)]
  return out


def leaves(tree: Mapping, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
  """(path, leaf) of nested dictionaries."""
  for key, value in tree.items():
    if isinstance(value, Mapping):
      yield from leaves(value, (*above, key))
    else:
      yield (*above, key), value


# ------------------------------------------------------------------ reading


def read(table: Table, run: Any, folder: _folder.Folder) -> dict[str, Any]:
  """`params` of the run's model from a folder, one tensor after another. Raises ValueError naming
  tensors that are missing, too many, of another shape, or not finite as they would lie here.
  """
  wanted = pieces(table, run)
  named = match(table, wanted, folder.shapes, folder.path)
  params: dict[str, Any] = {}
  for path, like in leaves(run.shapes['params']):
    _put(params, path, np.empty(like.shape, like.dtype))
  arrays = dict(leaves(params))
  for piece in wanted:
    x = _axes.inward(folder.read(named[piece.name]), piece.axes, piece.inner)
    for i, path in enumerate(piece.at):
      target = arrays[path] if piece.index is None else arrays[path][piece.index]
      with np.errstate(over='ignore'):
        target[...] = x if len(piece.at) == 1 else x[i]
      if not np.isfinite(target).all():
        raise ValueError(
          f'{folder.path}: {named[piece.name]} holds numbers that are not finite as {target.dtype}'
        )
  return params


def match(
  table: Table, wanted: list[Piece], found: Mapping[str, tuple[int, ...]], where: Any
) -> dict[str, str]:
  """The file's name of each tensor. Raises ValueError with all that does not fit, up to MOST."""
  bare = bool(table.prefix) and not any(n.startswith(table.prefix) for n in found)
  named = {p.name: p.name.removeprefix(table.prefix) if bare else p.name for p in wanted}
  named = {k: _spelled(table, n, found) for k, n in named.items()}
  problems = []
  for p in wanted:
    have = found.get(named[p.name])
    if have is None:
      problems.append(f'{named[p.name]} {list(p.shape)} is missing')
    elif have != p.shape:
      problems.append(f'{named[p.name]} has shape {list(have)}, {list(p.shape)} is expected')
  accepted = {*named.values(), *(one for one, _ in table.copies)}
  for name in found:
    if name not in accepted and not _dropped(table, name):
      problems.append(f'{name} {list(found[name])} has no place in this model')
  if problems:
    more = f'; and {len(problems) - MOST} more' if len(problems) > MOST else ''
    raise ValueError(
      f'{where}: the tensors are not those of config.json: {"; ".join(problems[:MOST])}{more}'
    )
  return named


def _spelled(table: Table, name: str, found: Mapping[str, Any]) -> str:
  for ending, older in table.spelled:
    other = name.removesuffix(ending) + older
    if name.endswith(ending) and name not in found and other in found:
      return other
  return name


def _dropped(table: Table, name: str) -> bool:
  plain = '.'.join('{n}' if word.isdigit() else word for word in name.split('.'))
  return plain in table.dropped or table.prefix + plain in table.dropped


def check_copies(table: Table, run: Any, folder: _folder.Folder):
  """Raises ValueError where what is one array here has two values there."""
  own = {p.name for p in pieces(table, run)}
  for one, other in table.copies:
    if one not in folder.shapes or one in own:
      continue
    other = other if other in folder.shapes else other.removeprefix(table.prefix)
    if other in folder.shapes and not np.array_equal(folder.read(one), folder.read(other)):
      raise ValueError(f'{folder.path}: {one} and {other} differ, and by config.json they are one')


def _put(tree: dict[str, Any], path: tuple[str, ...], value: Any):
  for key in path[:-1]:
    tree = tree.setdefault(key, {})
  tree[path[-1]] = value


# ------------------------------------------------------------------ writing


def outward(piece: Piece, arrays: Mapping[tuple[str, ...], Any]) -> np.ndarray:
  """A tensor made of a run's arrays."""
  parts = []
  for path in piece.at:
    x = arrays[path] if piece.index is None else arrays[path][piece.index]
    parts.append(np.asarray(x))
  x = parts[0] if len(parts) == 1 else np.stack(parts)
  cut = tuple(slice(n) for n in piece.inner)
  return np.ascontiguousarray(_axes.outward(x[cut], piece.axes))
