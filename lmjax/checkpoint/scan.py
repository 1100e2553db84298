"""Which steps a directory of checkpoints holds, and in what state.

  whole       it has a manifest, and every listed file is there with its size
  damaged     it has a manifest, and that or a listed file is not what it was
  unfinished  it has no manifest: a save that was interrupted

Presence and sizes are looked at here; what is in the files, by `manifest.verify`. Nothing is
written.
"""

import dataclasses
import math
from typing import Any, Mapping

from etils import epath

from lmjax import bucket
from lmjax.checkpoint import manifest


@dataclasses.dataclass
class Found:
  """Steps by state: manifests of the whole ones, the first problem of the others."""

  whole: dict[int, dict] = dataclasses.field(default_factory=dict)
  damaged: dict[int, str] = dataclasses.field(default_factory=dict)
  unfinished: dict[int, str] = dataclasses.field(default_factory=dict)

  def offered(self) -> list[int]:
    """Steps with a manifest, damaged or not, in ascending order."""
    return sorted([*self.whole, *self.damaged])


def number(name: str) -> int | None:
  """The step that a directory of this name holds, None where it holds none: '7' is 7; '07', '٧' and
  'best' are no names of ours.
  """
  ours = name.isascii() and name.isdigit() and (name == '0' or name[0] != '0')
  return int(name) if ours else None


def scan(directory: Any) -> Found:
  """Raises ValueError when the directory cannot be listed; one that is not there holds no steps."""
  directory, out = epath.Path(directory), Found()
  try:
    entries = children(directory)
  except OSError as e:
    raise ValueError(f'{directory} cannot be read ({e.strerror or e})') from None
  for entry in entries:
    step = number(entry.name)
    if step is not None:
      _sort(out, step, entry)
  return out


def children(directory: epath.Path) -> list[epath.Path]:
  """What is in a directory; nothing for one that is not there, or has no object in a store yet."""
  with bucket.told():
    return list(directory.iterdir()) if directory.is_dir() else []


def _sort(out: Found, step: int, entry: epath.Path) -> None:
  try:
    with bucket.told():
      if not entry.is_dir() or manifest.is_doomed(entry):
        return
      has_manifest = manifest.exists(entry)
      problems = manifest.verify(entry, checksums=False)
  except OSError as e:
    out.damaged[step] = f'{entry} cannot be read ({e.strerror or e})'
    return
  if not problems:
    out.whole[step] = manifest.read(entry)
  else:
    (out.damaged if has_manifest else out.unfinished)[step] = problems[0]


def best(found: Mapping[int, dict], key: str | None) -> int | None:
  """The step with the lowest score `key` among manifests by step; NaN is no score."""
  scored = [(body['scores'][key], step) for step, body in found.items() if key in body['scores']]
  scored = [(score, step) for score, step in scored if not math.isnan(score)]
  return min(scored)[1] if scored else None


def newest_whole(
  directory: Any, found: Found, below: float = math.inf
) -> tuple[int | None, dict[int, str]]:
  """The newest step under `below` whose checksums hold, and the first problem of each newer one
  whose do not. Reads their files.
  """
  failed = {}
  for step in sorted((s for s in found.whole if s < below), reverse=True):
    problems = manifest.verify(epath.Path(directory) / str(step))
    if not problems:
      return step, failed
    failed[step] = problems[0]
  return None, failed
