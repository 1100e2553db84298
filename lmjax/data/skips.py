"""Batches that a run leaves out: ranges of the stream, kept in `skips.json` of its directory.

The batches of a stream are numbered from 0; without skips update k sees batch k. With them it sees
the k-th batch that is not skipped, in closed form, so that a restart needs no counting. The file is
only ever added to, through a rename, and every entry says why it is there.
"""

import dataclasses
import json
import re
from typing import Any, Iterable

from lmjax import files

FILE = 'skips.json'
REWIND = 'rewind'  # how the reason of an entry begins that a rewind made
MOST = 10**12  # batches of a stream


@dataclasses.dataclass(frozen=True)
class Skips:
  """Sorted, disjoint ranges [start, stop) of batches."""

  ranges: tuple[tuple[int, int], ...] = ()

  @classmethod
  def of(cls, ranges: Iterable[tuple[int, int]]) -> 'Skips':
    """Joins ranges in any order, overlapping or not."""
    out: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
      if out and start <= out[-1][1]:
        out[-1] = out[-1][0], max(stop, out[-1][1])
      else:
        out.append((start, stop))
    return cls(tuple(out))

  def batch(self, update: int) -> int:
    """The batch that update `update` (from 0) sees."""
    for start, stop in self.ranges:
      if start > update:
        break
      update += stop - start
    return update

  def before(self, batch: int) -> 'Skips':
    """The ranges as far as they lie before a batch."""
    return Skips(tuple((a, min(b, batch)) for a, b in self.ranges if a < batch))

  def past(self, updates: int) -> 'Skips':
    """What lies before the last of the batches that so many updates saw."""
    return self.before(self.batch(updates - 1)) if updates else Skips()

  def joined(self, other: 'Skips') -> 'Skips':
    return Skips.of([*self.ranges, *other.ranges])

  def __str__(self):
    """'1200:1400, 1512:1513'."""
    return ', '.join(f'{a}:{b}' for a, b in self.ranges) or 'none'


def parse(text: str) -> list[tuple[int, int]]:
  """'1200:1400, 1512' -> [(1200, 1400), (1512, 1513)]. Raises ValueError naming the piece."""
  out = []
  for piece in text.split(','):
    found = re.fullmatch(r'\s*(\d{1,13})(?::(\d{1,13}))?\s*', piece)
    start = int(found[1]) if found else 0
    stop = int(found[2] or start + 1) if found else 0
    if not start < stop <= MOST:
      raise ValueError(
        f'--skip_batches={text:.60}: {piece.strip()[:60]!r} is not a batch, as in 1512, nor a '
        f'range with its end left out, as in 1200:1400; {MOST} is the largest end'
      )
    out.append((start, stop))
  return out


def entries(workdir: Any) -> list[dict[str, Any]]:
  """The entries of a run's file. Raises ValueError naming the file where it cannot be used."""
  path = files.path_of(workdir) / FILE
  if not path.exists():
    return []
  found = files.read_json(path)
  for e in found if isinstance(found, list) else [str(found)]:
    ends = [e.get(k) for k in ('start', 'stop')] if isinstance(e, dict) else []
    if not ends or {type(x) for x in ends} != {int} or not 0 <= ends[0] < ends[1] <= MOST:
      raise ValueError(
        f'{path}: {str(e)[:60]} is not a range of batches; the file is a list of '
        '{"start": batch, "stop": batch, "why": text}'
      )
  return found


def read(workdir: Any, why: str = '') -> Skips:
  """All batches left out, or those for a reason that begins with `why`."""
  found = [e for e in entries(workdir) if str(e.get('why', '')).startswith(why)]
  return Skips.of((e['start'], e['stop']) for e in found)


def add(workdir: Any, ranges: Iterable[tuple[int, int]], why: str) -> Skips:
  """Adds ranges to the file and returns all of them. Ends the run where it cannot be written."""
  found = entries(workdir) + [dict(start=a, stop=b, why=why) for a, b in ranges]
  path = files.path_of(workdir) / FILE
  with files.kept(path):
    files.write(path, json.dumps(found, indent=1) + '\n')
  return read(workdir)
