"""Which mesh axes a collective runs over: groups of devices, read and matched with a mesh."""

import dataclasses
import math
import re
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Grid:
  """A mesh as a program knows it. `ids` has the partition's number at every place of the mesh (-1
  where the place belongs to another slice), `devices` the device's, where known.
  """

  sizes: dict[str, int]
  ids: np.ndarray
  devices: np.ndarray | None = None

  def axes(self, groups: np.ndarray | None, of_devices: bool = False) -> tuple[str, ...] | None:
    """The axes that these groups (row by row) run over, in the order of the mesh; () where every
    group is one device; None where the groups are no union of axes.
    """
    if groups is None:
      return None
    places = self._places(groups, of_devices)
    if places is None:
      return None
    moves = (places != places[:, :1]).any(axis=(0, 1))
    axes = tuple(a for a, m in zip(self.sizes, moves) if m)
    whole = math.prod(self.sizes[a] for a in axes) == groups.shape[1]
    return axes if whole else None

  def across(self, pairs: np.ndarray, of_devices: bool = False) -> tuple[str, ...] | None:
    """The axes along which sources and targets differ."""
    places = self._places(pairs, of_devices)
    if places is None:
      return None
    moves = (places[:, 0] != places[:, 1]).any(axis=0)
    return tuple(a for a, m in zip(self.sizes, moves) if m)

  def count(self, axes: tuple[str, ...]) -> int:
    return math.prod(self.sizes[a] for a in axes)

  def _places(self, groups: np.ndarray, of_devices: bool) -> np.ndarray | None:
    """Coordinates [group, member, axis]; None where a number is not on the mesh."""
    ids = self.devices if of_devices else self.ids
    if ids is None:
      return None
    order = np.argsort(ids, axis=None)
    listed = ids.ravel()[order]
    at = np.minimum(np.searchsorted(listed, groups), listed.size - 1)
    if (listed[at] != groups).any() or (groups < 0).any():
      return None
    return np.stack(np.unravel_index(order[at], ids.shape), axis=-1) if ids.ndim else at[..., :0]


def grid(mesh: Any, partitions: int) -> Grid:
  """A grid from a `jax.sharding.Mesh`, from (axis sizes, array of partition numbers) or from None
  for one device.

  Partitions are numbered as the mesh lists its devices. A program for several slices is that of
  one slice, whose partitions alone it numbers. Raises ValueError where program and mesh do not
  have equally many devices.
  """
  if mesh is None:
    mesh = ({}, np.zeros((), np.int64))
  if isinstance(mesh, tuple):
    sizes, ids = mesh
    out = Grid(dict(sizes), np.asarray(ids).reshape(tuple(sizes.values())))
    count = out.ids.size
  else:
    out = _of_mesh(mesh, partitions)
    count = int((out.ids >= 0).sum())
  if count != partitions:
    raise ValueError(
      f'the program is cut over {partitions} devices, the mesh {out.sizes} has {count}'
    )
  return out


def _of_mesh(mesh: Any, partitions: int) -> Grid:
  numbers = lambda f: np.array([f(d) for d in mesh.devices.flat]).reshape(mesh.devices.shape)
  ids = np.arange(mesh.devices.size).reshape(mesh.devices.shape)
  if partitions < mesh.devices.size:
    slices = numbers(lambda d: getattr(d, 'slice_index', 0))
    mine = slices == slices.flat[0]
    ids = np.where(mine, np.cumsum(mine).reshape(mine.shape) - 1, -1)
  return Grid(dict(mesh.shape), ids, numbers(lambda d: d.id))


def written(instruction: Any) -> str:
  """The text of an instruction's `replica_groups=`, '' where it has none."""
  form = r'replica_groups=(mesh\[[^\]]*\](?:, ?device_ids=\(.*?\)+)? ?\{[^}]*\})'
  found = re.search(form, instruction.attributes)
  return found[1] if found else instruction.attribute('replica_groups') or ''


def read(text: str, partitions: int) -> np.ndarray | None:
  """Groups [group, member] of a `replica_groups=` in any of its forms; None where they are of
  different sizes.

    {{0,2},{1,3}}              lists; {} for all devices together
    [2,4]<=[4,2]T(1,0)         a range, reshaped, transposed, cut into groups
    mesh['a'=4,'b'=2] {'a'}    axes of a mesh; 'a':(2)2 is the part of size 2 behind a part of size
                               2, and `, device_ids=(...)` names the devices where they are no range

  Raises ValueError for any other.
  """
  if text in ('', '{}'):
    return np.arange(partitions)[None]
  if text.startswith('mesh'):
    return _of_axes(text)
  if '<=' in text:
    shape, _, base = text.partition('<=')
    return _iota(base).reshape([int(n) for n in re.findall(r'\d+', shape)])
  if text.startswith('{{'):
    rows = [[int(n) for n in re.findall(r'\d+', g)] for g in re.findall(r'\{([\d, ]*)\}', text)]
    return np.array(rows) if len({len(r) for r in rows}) == 1 else None
  raise ValueError(f'replica_groups={text}: this form is not known')


def pairs(text: str) -> np.ndarray:
  """[pair, (source, target)] of `{{0,1},{1,0}}` or `{{0->1},{1->0}}`."""
  return np.array([int(n) for n in re.findall(r'\d+', text)]).reshape(-1, 2)


def _iota(text: str) -> np.ndarray:
  """`[4,2]T(1,0)`: a range of this shape, transposed."""
  found = re.search(r'\[([\d,]+)\](?:T\(([\d,]+)\))?', text)
  shape = [int(n) for n in found[1].split(',')]
  out = np.arange(math.prod(shape)).reshape(shape)
  return out.transpose([int(n) for n in found[2].split(',')]) if found[2] else out


def _of_axes(text: str) -> np.ndarray:
  """Groups that run over axes of a mesh which the text defines itself."""
  form = r'mesh\[([^\]]*)\](?:, ?device_ids=\((.*)\))? ?\{([^}]*)\}'
  if not (found := re.fullmatch(form, text)):
    raise ValueError(f'replica_groups={text}: this form is not known')
  sizes = {name: int(n) for name, n in re.findall(r"'?([^',=]+)'?=(\d+)", found[1])}
  ids = np.arange(math.prod(sizes.values()))
  if found[2]:
    listed = np.array([int(n) for n in re.findall(r'\d+', found[2])])
    ids = listed if listed.size == ids.size else _iota(found[2])
  wanted = re.findall(r"'?([^',:]+)'?(?::\((\d+)\)(\d+))?(?:,|$)", found[3])
  shape, over = [], []
  for name, n in sizes.items():
    parts = [(int(a or 1), int(b or n)) for other, a, b in wanted if other == name]
    done = 1
    for before, size in sorted(parts):
      shape += [before // done, size]
      over.append(len(shape) - 1)
      done = before * size
    shape.append(n // done)
  rest = [k for k in range(len(shape)) if k not in over]
  ids = ids.reshape(shape).transpose(rest + over)
  return ids.reshape(-1, math.prod(shape[k] for k in over))
