"""Checkpoints: asynchronous saves by orbax, completeness and integrity by a manifest of our own.

  <directory>/<step>/state, cursor      written by orbax, renamed into place when complete
  <directory>/<step>/manifest.json      written last by a background thread: the step exists now

Invariants, beside those of reader.py. A background failure is raised by the next call. Nothing is
deleted that neither a manifest lists nor a failed save of this object began; what stands in the way
of a save is renamed aside.

With several processes, every method that reads or writes the directory is called by all of them, as
with collectives.
"""

import contextlib
import json
import logging
import threading
import time
from typing import Any, Mapping

import jax
import orbax.checkpoint as ocp

from lmjax import exits
from lmjax import versions
from lmjax.checkpoint import manifest
from lmjax.checkpoint import reader
from lmjax.checkpoint import room
from lmjax.checkpoint import tree as tree_lib
from lmjax.parallel import processes

_LOG = logging.getLogger(__name__)
_VERSIONS = ('jax', 'orbax-checkpoint', 'numpy')


class CheckpointError(exits.DiskError):
  """A save failed (disk, network); the message names the step and the directory."""


class Checkpointer(reader.Reader):
  """Saves and restores the state of one run.

  Args:
    directory: made at the first save; reading never writes.
    keep_last: newest whole steps kept; 0 keeps all.
    keep_every: steps divisible by it are kept for ever; 0 keeps none for that reason.
    keep_best: keeps the step with the lowest score `best_key`.

  Attributes:
    blocked: seconds for which `save` and `wait` kept the caller waiting for the last save, the wait
      for the one before it included.
    completed: the last step whose save is known to be complete, None before it.
    last_seconds: seconds from the call to the manifest of the last complete save, None before it.
  """

  def __init__(
    self,
    directory: Any,
    *,
    keep_last: int = 2,
    keep_every: int = 0,
    keep_best: bool = True,
    best_key: str = 'loss',
  ):
    super().__init__(directory, best_key=best_key)
    self._retention = room.Retention(keep_last, keep_every, best_key if keep_best else None)
    self._saver = None
    self._thread: threading.Thread | None = None
    self._error: BaseException | None = None
    self._begun: int | None = None  # the step for which room was made; process 0 knows
    self._mine: set[int] = set()  # saved or restored by this object
    self._late: dict[str, float] | None = None  # scores for the save under way; None: too late
    self._late_lock = threading.Lock()
    self.completed: int | None = None
    self.blocked = 0.0
    self.last_seconds: float | None = None

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()

  # ---------------------------------------------------------------- saving

  def save(
    self,
    step: int,
    state: Any,
    cursor: Mapping[str, Any],
    scores: Mapping[str, float] | None = None,
  ) -> None:
    """Saves a state; returns once the arrays have left the devices, so that the step may donate
    them.

    A step that this run already saved or restored is not written again; its scores are updated.
    After a CheckpointError the next `save` begins anew, of the same step or another.

    Raises:
      CheckpointError: this save cannot start, or the one before failed in the background.
      ValueError: the cursor is not JSON.
    """
    start = time.monotonic()
    try:
      self._join()
      _check_json(cursor, 'cursor')
      scores = {k: float(v) for k, v in (scores or {}).items()}
      if step in self._mine:
        self._add_scores(step, scores)
      else:
        self._save(step, state, cursor, scores, start)
    finally:
      self.blocked = time.monotonic() - start

  def _save(self, step: int, state: Any, cursor: Mapping, scores: dict, start: float) -> None:
    leaves = tree_lib.named_leaves(state)
    stored = tree_lib.nest({k: tree_lib.storable(v) for k, v in leaves.items()})
    args = ocp.args.Composite(
      state=ocp.args.PyTreeSave(stored),
      cursor=ocp.args.JsonSave(dict(cursor)),
    )
    self._begun = None
    try:
      processes.from_primary(lambda: self._make_room(step))
      self._saver = self._saver or ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
      self._saver.save(self.directory / str(step), args=args)
    except Exception as e:
      self._abandon(step)
      raise CheckpointError(f'saving step {step} to {self.directory} failed: {e}') from e
    self._saving, self._late = step, {}
    described = {k: tree_lib.describe(v) for k, v in leaves.items()}
    # Not a daemon: a save that was started is finished even if the run ends without `close`.
    self._thread = threading.Thread(
      target=self._finish,
      args=(step, described, tree_lib.empties(state), scores, start),
      name=f'checkpoint-{step}',
    )
    self._thread.start()

  def score(self, step: int, scores: Mapping[str, float]) -> None:
    """Adds scores to a step that this object saved or restored, now or when its save is complete,
    which is not waited for: what fails then is raised by the next call.
    """
    scores = {k: float(v) for k, v in scores.items()}
    if self._thread is None:
      if step in self._mine:
        self._add_scores(step, scores)
    elif step == self._saving and scores and jax.process_index() == 0:
      with self._late_lock:
        if self._late is not None:
          self._late |= scores
        elif self._error is None:
          try:
            self._put_scores(step, scores)
          except (OSError, ValueError) as e:
            self._error = e

  def poll(self) -> None:
    """Raises what a background save met, if it has ended; never blocks. Several processes learn it
    at the next `wait`.
    """
    if jax.process_count() == 1 and self._thread is not None and not self._thread.is_alive():
      self.wait()

  def wait(self) -> None:
    """Blocks until the save under way is complete, manifest included, on all processes; raises what
    it met.
    """
    start = time.monotonic()
    try:
      self._join()
    finally:
      self.blocked += time.monotonic() - start

  def close(self) -> None:
    try:
      self.wait()
    finally:
      self._drop_saver()

  def _join(self) -> None:
    if self._thread is not None:
      self._thread.join()
      self._thread, step, self._saving = None, self._saving, None
      error, self._error = self._error, None
      problem = processes.from_primary(lambda: None if error is None else str(error)) or error
      if problem is not None:
        self._abandon(step)
        raise CheckpointError(
          f'saving step {step} to {self.directory} failed: {problem}'
        ) from error
      self._mine.add(step)
      self.completed = step

  def _finish(self, step: int, leaves: dict, empty: list, scores: dict, start: float) -> None:
    try:
      self._saver.wait_until_finished()
      if jax.process_index() == 0:
        manifest.write(
          self.directory / str(step),
          step,
          leaves=leaves,
          scores=scores,
          empty=empty,
          version=versions.package('lmjax') or '',
          versions={p: v for p in _VERSIONS if (v := versions.package(p))},
        )
      self.last_seconds = time.monotonic() - start
      if jax.process_index() == 0:
        with self._late_lock:
          late, self._late = self._late, None
          self._put_scores(step, late)
        self._retain(step)
    except BaseException as e:  # kept for the training thread, whatever it is
      self._error = e
      _LOG.error('saving step %d to %s failed: %s', step, self.directory, e)

  def _abandon(self, step: int) -> None:
    """After a failure: orbax begins anew, and the space of what it had begun is free again."""
    self._drop_saver()
    if self._begun == step:
      with contextlib.suppress(OSError):
        room.drop_unfinished(self.directory, step)

  def _drop_saver(self) -> None:
    saver, self._saver = self._saver, None
    if saver is not None:
      with contextlib.suppress(Exception):  # it was raised, or will be, as a CheckpointError
        saver.close()

  def _add_scores(self, step: int, scores: dict) -> None:
    try:
      processes.from_primary(lambda: self._put_scores(step, scores))
    except (OSError, ValueError) as e:
      raise CheckpointError(
        f'saving the scores of step {step} to {self.directory} failed: {e}'
      ) from e

  def _put_scores(self, step: int, scores: Mapping[str, float]) -> None:
    if scores:
      body = manifest.read(self.directory / str(step))
      manifest.put(self.directory / str(step), body | {'scores': body['scores'] | scores})

  def restore(self, step: int, like: Any) -> tuple[Any, dict]:
    out = super().restore(step, like)
    self._mine.add(step)
    return out

  # ---------------------------------------------------------------- making room

  def _make_room(self, step: int) -> None:
    room.make(self.directory, step)
    self._failed.pop(step, None)
    # A run that passed over damaged steps goes on from an older one: what it saves is the newest.
    self._set_aside({s: 'damaged' for s in self._scan().damaged if s > step})
    self._begun = step

  def _retain(self, saved: int) -> None:
    with self._lock:
      # A damaged step neither counts nor goes.
      old = self._retention.old(self._scan().whole, saved)
      for name, problem in room.delete(self.directory, old).items():
        self._warn(name, 'is half deleted and stays: %s', problem)

  # ---------------------------------------------------------------- going back

  def set_aside(self, *, after: int) -> None:
    """Renames the steps newer than `after`, damaged ones included: the run takes another course
    from there, and must neither go on from them nor count them as its own. Waits for the save under
    way, whose failure does not matter any more.
    """
    try:
      self.wait()
    except CheckpointError as e:
      _LOG.warning('%s; it was to be set aside', e)

    def rename():
      found = self._found()
      why = {s: 'replaced' for s in found.whole} | {s: 'damaged' for s in found.damaged}
      self._set_aside({s: w for s, w in why.items() if s > after})

    processes.from_primary(rename)
    self._mine = {s for s in self._mine if s <= after}

  def _set_aside(self, why: Mapping[int, str]) -> None:
    for step in sorted(why):
      room.aside(self.directory / str(step), why[step], step)
      self._failed.pop(step, None)


def _check_json(value: Any, what: str) -> None:
  try:
    json.dumps(value)
  except (TypeError, ValueError) as e:
    raise ValueError(
      f'the {what} of a checkpoint holds JSON values only '
      f'(numbers, strings, lists, dictionaries): {e}'
    ) from None
