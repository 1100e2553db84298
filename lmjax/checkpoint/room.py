"""What leaves a directory of checkpoints: old steps are deleted, what is in the way is renamed.

Nothing is deleted that a manifest does not list.
"""

import dataclasses
import logging
from typing import Any, Mapping

from etils import epath

from lmjax import bucket
from lmjax.checkpoint import manifest
from lmjax.checkpoint import scan

_LOG = logging.getLogger(__name__)
TMP = '.orbax-checkpoint-tmp'


@dataclasses.dataclass(frozen=True)
class Retention:
  """last: newest steps kept, 0 keeps all. every: steps divisible by it are kept, 0 keeps none for
  that reason. best_key: the step with the lowest such score is kept.
  """

  last: int
  every: int
  best_key: str | None

  def __post_init__(self):
    for name, value in (('keep_last', self.last), ('keep_every', self.every)):
      if value < 0:
        raise ValueError(f'{name}={value} is negative; a whole number from 0 is accepted')

  def old(self, whole: Mapping[int, dict], saved: int) -> list[int]:
    """Steps to delete among the whole ones, by their manifests, after a save of step `saved`."""
    keep = set(sorted(whole)[-self.last :]) if self.last else set(whole)
    keep |= {s for s in whole if self.every and s % self.every == 0}
    keep |= {scan.best(whole, self.best_key), saved}
    return sorted(whole.keys() - keep)


def delete(directory: epath.Path, steps: list[int]) -> dict[str, str]:
  """Deletes steps, and what is left of deletions that a kill interrupted. Returns what could not be
  deleted, by name, with the reason.
  """
  for step in steps:
    if not manifest.is_link(directory / str(step)):
      manifest.remove(directory / str(step))
  failed = {}
  for entry in scan.children(directory):
    if scan.number(entry.name) is not None and manifest.is_doomed(entry):
      try:
        manifest.remove(entry)
      except manifest.ManifestError as e:
        failed[entry.name] = str(e)
  return failed


def make(directory: epath.Path, step: int) -> None:
  """Renames what stands where a step goes: a killed save, a damaged step, one of another run."""
  if not bucket.is_remote(directory):
    directory.mkdir(parents=True, exist_ok=True)
  for old in scan.children(directory):
    if old.name == str(step) or old.name.startswith(f'{step}{TMP}'):
      whole = not manifest.verify(old, checksums=False)
      why = 'replaced' if whole else 'damaged' if manifest.exists(old) else 'incomplete'
      aside(old, why, step)


def aside(old: Any, why: str, step: int) -> None:
  """Renames `old` to the first free `<why>-<step>-<n>` beside it."""
  free = (old.parent / f'{why}-{step}-{n}' for n in range(10**6))
  new = next(p for p in free if not p.exists())
  if bucket.is_remote(old):
    with bucket.told():
      bucket.move(old, new, first=manifest.NAME)
  else:
    old.rename(new)
  _LOG.warning('%s was moved to %s; delete it when you no longer need it', old, new.name)


def drop_unfinished(directory: epath.Path, step: int) -> None:
  """Deletes what orbax had begun of a save that failed. To be called only where `make` came first,
  so that what bears this name is that save's own.
  """
  if bucket.is_remote(directory):  # there it writes into the place itself
    with bucket.told():
      if not manifest.exists(directory / str(step)):
        bucket.delete(directory / str(step) / n for n in bucket.listing(directory / str(step)))
    return
  for entry in list(directory.iterdir()):
    if entry.name.startswith(f'{step}{TMP}'):
      entry.rmtree()
