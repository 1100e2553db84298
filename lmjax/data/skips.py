"""Batches that a run leaves out: ranges of the stream, kept in `skips.json` of its directory.

The batches of a stream are numbered from 0; without skips update k sees batch k. With them it sees
the k-th batch that is not skipped, in closed form, so that a restart needs no counting. The file is
only ever added to, through a rename, and every entry says why it is there.
"""

import dataclasses
import json
import pathlib
import re
from typing import Any, Iterable

FILE = 'skips.json'


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


def parse(text: str) -> list[tuple[int, int]]:
  """'1200:1400, 1512' -> [(1200, 1400), (1512, 1513)]. Raises ValueError naming the piece."""
  out = []
  for piece in text.split(','):
    found = re.fullmatch(r'\s*(\d+)(?::(\d+))?\s*', piece)
    start, stop = (found[1], found[2] or int(found[1]) + 1) if found else (0, 0)
    if not int(start) < int(stop):
      raise ValueError(
        f'skip_batches={text!r}: {piece.strip()!r} is not a batch, as in 1512, nor a range with '
        'its end left out, as in 1200:1400'
      )
    out.append((int(start), int(stop)))
  return out


def entries(workdir: Any) -> list[dict[str, Any]]:
  """The entries of a run's file. Raises ValueError naming the file where it cannot be used."""
  path = pathlib.Path(workdir) / FILE
  if not path.exists():
    return []
  try:
    found = json.loads(path.read_text(encoding='utf-8'))
    whole = all(type(e[k]) is int for e in found for k in ('start', 'stop'))
    if not whole or any(not 0 <= e['start'] < e['stop'] for e in found):
      raise ValueError('an entry is not a range of batches')
  except (OSError, ValueError, TypeError, KeyError) as e:
    raise ValueError(
      f'{path} cannot be read ({e}); it is a list of {{"start": batch, "stop": batch, "why": text}}'
    ) from None
  return found


def read(workdir: Any) -> Skips:
  return Skips.of((e['start'], e['stop']) for e in entries(workdir))


def add(workdir: Any, ranges: Iterable[tuple[int, int]], why: str) -> Skips:
  """Adds ranges to the file and returns all of them."""
  found = entries(workdir) + [dict(start=a, stop=b, why=why) for a, b in ranges]
  path = pathlib.Path(workdir) / FILE
  partial = path.with_name(f'{FILE}.partial')
  partial.write_text(json.dumps(found, indent=1) + '\n', encoding='utf-8')
  partial.replace(path)
  return read(workdir)
