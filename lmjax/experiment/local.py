"""Trials on this machine, several at a time, each on cores of its own."""

import concurrent.futures
import os
import queue
from typing import Any, Callable, Iterator, Sequence

from lmjax.experiment import remote
from lmjax.experiment.trials import Trial


def cores() -> list[int]:
  """The cores this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return sorted(os.sched_getaffinity(0))
  return list(range(os.cpu_count() or 1))


class Local:
  """An engine, see `engines`. jobs: trials at a time; by default as many as have their cores."""

  def __init__(self, jobs: int = 0):
    self.jobs = jobs
    self.stopping = remote.Guarded()  # a killed runner leaves no runs behind

  def run(
    self, trials: Sequence[Trial], runs: Any, measure: Callable
  ) -> Iterator[tuple[Trial, dict]]:
    if not trials:
      return
    have, each = cores(), max(1, trials[0].cores)
    # Accelerators are not divided here: one trial at a time unless told; Ray gives each its own.
    jobs = self.jobs or (1 if trials[0].gpus else max(1, len(have) // each))
    places: queue.SimpleQueue = queue.SimpleQueue()
    for i in range(jobs):
      mine = have[i * each : (i + 1) * each]
      places.put(mine if jobs * each <= len(have) and not trials[0].gpus else None)

    def one(trial: Trial):
      place = places.get()
      try:
        return remote.guarded(trial, runs, measure, place, self.stopping)
      finally:
        places.put(place)

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
      found = {pool.submit(one, t): t for t in trials}
      try:
        for future in concurrent.futures.as_completed(found):
          yield found[future], future.result()
      finally:
        for future in found:
          future.cancel()

  def stop(self) -> None:
    self.stopping.stop()
