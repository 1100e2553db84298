"""Going back: the steps newer than one are renamed, so that the run resumes from it. Once."""

import contextlib
from typing import Any

from lmjax import rundir
from lmjax.checkpoint import manifest
from lmjax.checkpoint import room
from lmjax.checkpoint import scan


def rewind(folder: Any, step: int) -> list[int]:
  """Renames the steps of `folder` that are newer than a whole step, and returns them.

  Raises ValueError where there is no such step, it is damaged, or a run is using the directory.
  """
  found = scan.scan(folder)
  if step not in found.offered():
    there = ', '.join(map(str, found.offered())) or 'none'
    raise ValueError(f'--step={step}: {folder} has no such step; it has {there}')
  problems = manifest.verify(folder / str(step))
  if problems:
    raise ValueError(f'--step={step}: it is damaged: {problems[0]}')
  newer = sorted(s for s in [*found.offered(), *found.unfinished] if s > step)
  run = folder.parent
  with rundir.held(run) if (run / 'fingerprint.txt').exists() else contextlib.nullcontext():
    for s in newer:
      room.aside(folder / str(s), 'rewound', s)
  return newer
