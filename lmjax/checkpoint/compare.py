"""What differs between two steps, bit for bit."""

import dataclasses
from typing import Any, Iterator

import numpy as np

from lmjax import rundir
from lmjax.checkpoint import arrays
from lmjax.checkpoint import tree as tree_lib

_ABSENT = object()


@dataclasses.dataclass(frozen=True)
class Difference:
  """One array that differs. count, size: elements of other bits, and all; largest: the largest
  |a - b|, NaN where it is not finite. None where presence, shape or dtype differs already.
  """

  name: str
  text: str
  count: int | None = None
  size: int | None = None
  largest: float | None = None


def compare(a: Any, b: Any, bodies: tuple[dict, dict]) -> Iterator[Difference]:
  """Differences of the arrays of two step directories with these manifests: those of presence,
  shape and dtype first.
  """
  ours, theirs = (body['leaves'] for body in bodies)
  both = []
  for name in sorted(ours.keys() | theirs.keys()):
    if name not in ours or name not in theirs:
      where, entry = ('A', ours[name]) if name in ours else ('B', theirs[name])
      yield Difference(name, f'only in {where}: {tree_lib.show(entry)}')
    elif ours[name] != theirs[name]:
      yield Difference(name, f'{tree_lib.show(ours[name])} and {tree_lib.show(theirs[name])}')
    else:
      both.append(name)
  for group in arrays.groups(bodies[0], both):
    left, right = arrays.read(a, bodies[0], group), arrays.read(b, bodies[1], group)
    for name in group:
      found = elements(left[name], right[name])
      if found is not None:
        count, largest = found
        text = (
          f'{tree_lib.show(ours[name])}: {count:,} of {left[name].size:,} elements differ, '
          f'max |a - b| = {largest:.6g}'
        )
        yield Difference(name, text, count, left[name].size, largest)


def elements(a: np.ndarray, b: np.ndarray) -> tuple[int, float] | None:
  """(elements of other bits, largest |a - b|) of arrays of one shape and dtype; None where all bits
  are equal. 0 and -0 differ by bits and by 0; the largest is NaN where a NaN or infinity is not on
  both sides.
  """
  size = a.dtype.itemsize
  bits = [np.ascontiguousarray(x).reshape(-1).view(np.uint8).reshape(-1, size) for x in (a, b)]
  other = (bits[0] != bits[1]).any(axis=1)
  count = int(other.sum())
  return (count, _largest(a.reshape(-1)[other], b.reshape(-1)[other])) if count else None


def _largest(a: np.ndarray, b: np.ndarray) -> float:
  if a.dtype == np.bool_:
    return 1.0
  if a.dtype.kind in 'iu':  # exact: the difference of signed numbers fits the unsigned type
    return float((np.maximum(a, b) - np.minimum(a, b)).view(f'u{a.dtype.itemsize}').max())
  wide = np.complex128 if a.dtype.kind == 'c' else np.float64
  a, b = a.astype(wide), b.astype(wide)
  with np.errstate(invalid='ignore', over='ignore'):
    gap = np.abs(a - b)
  gap[(a == b) | (np.isnan(a) & np.isnan(b))] = 0  # infinities; NaNs of other bits
  return float(gap.max()) if np.isfinite(gap).all() else float('nan')


def cursors(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
  """One sentence for each entry of the cursors that differs."""
  a, b = rundir.flatten(a), rundir.flatten(b)
  show = lambda flat, key: repr(flat[key]) if key in flat else 'absent'
  return [
    f'cursor.{key}: {show(a, key)} and {show(b, key)}'
    for key in sorted(a.keys() | b.keys())
    if a.get(key, _ABSENT) != b.get(key, _ABSENT)
  ]
