"""Checkpoints: asynchronous saves by orbax, completeness and integrity by a manifest of our own.

  <directory>/<step>/state, cursor      written by orbax, renamed into place when complete
  <directory>/<step>/manifest.json      written last by a background thread: the step exists now

Invariants. A step without a valid manifest is never offered. A restore checks every checksum, and
the tree, shapes and dtypes, before it trusts an array. A background failure is raised by the next
call. Nothing is deleted that a manifest does not list; what stands in the way of a save is renamed
aside.

With several processes, every method that reads or writes the directory is called by all of them, as
with collectives.
"""

import json
import logging
import math
import threading
from typing import Any, Mapping

from etils import epath
import jax
import numpy as np
import orbax.checkpoint as ocp

from lmjax import checkpoint_tree as tree_lib
from lmjax import manifest
from lmjax import rundir

_LOG = logging.getLogger(__name__)
_TMP = '.orbax-checkpoint-tmp'
_SHOWN = 5


class CheckpointError(RuntimeError):
  """A save failed (disk, network); the message names the step and the directory."""


class Checkpointer:
  """Saves and restores the state of one run.

  Args:
    directory: made at the first save; reading never writes.
    keep_last: newest steps kept; 0 keeps all.
    keep_every: steps divisible by it are kept for ever; 0 keeps none for that reason.
    keep_best: keeps the step with the lowest score `best_key`.
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
    self.directory = epath.Path(directory).absolute()
    if self.directory.exists() and not self.directory.is_dir():
      raise ValueError(f'the checkpoint directory {self.directory} is a file')
    for name, value in (('keep_last', keep_last), ('keep_every', keep_every)):
      if value < 0:
        raise ValueError(f'{name}={value} is negative; a whole number from 0 is accepted')
    self._keep_last, self._keep_every = keep_last, keep_every
    self._best_key = best_key if keep_best else None
    self._score_key = best_key
    self._saver = None
    self._thread: threading.Thread | None = None
    self._lock = threading.Lock()  # retention runs beside readers
    self._error: BaseException | None = None
    self._saving: int | None = None
    self._mine: set[int] = set()
    self._warned: set[str] = set()

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

    Raises:
      CheckpointError: this save cannot start, or the one before failed in the background.
      ValueError: the cursor is not JSON.
    """
    self.wait()
    _check_json(cursor, 'cursor')
    scores = {k: float(v) for k, v in (scores or {}).items()}
    if step in self._mine:
      self._update_scores(step, scores)
      return
    leaves = tree_lib.named_leaves(state)
    stored = tree_lib.nest({k: tree_lib.storable(v) for k, v in leaves.items()})
    args = ocp.args.Composite(
      state=ocp.args.PyTreeSave(stored),
      cursor=ocp.args.JsonSave(dict(cursor)),
    )
    try:
      _from_primary(lambda: self._make_room(step))
      self._saver = self._saver or ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
      self._saver.save(self.directory / str(step), args=args)
    except Exception as e:
      raise CheckpointError(f'saving step {step} to {self.directory} failed: {e}') from e
    self._saving = step
    described = {k: tree_lib.describe(v) for k, v in leaves.items()}
    # Not a daemon: a save that was started is finished even if the run ends without `close`.
    self._thread = threading.Thread(
      target=self._finish,
      args=(step, described, tree_lib.empties(state), scores),
      name=f'checkpoint-{step}',
    )
    self._thread.start()

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
    if self._thread is not None:
      self._thread.join()
      self._thread, step, self._saving = None, self._saving, None
      error, self._error = self._error, None
      problem = _from_primary(lambda: None if error is None else str(error)) or error
      if problem is not None:
        raise CheckpointError(
          f'saving step {step} to {self.directory} failed: {problem}'
        ) from error
      self._mine.add(step)

  def close(self) -> None:
    try:
      self.wait()
    finally:
      if self._saver is not None:
        self._saver.close()
        self._saver = None

  def _finish(self, step: int, leaves: dict, empty: list[str], scores: dict) -> None:
    try:
      self._saver.wait_until_finished()
      if jax.process_index() == 0:
        manifest.write(
          self.directory / str(step),
          step,
          leaves=leaves,
          scores=scores,
          empty=empty,
          version=rundir.package_version('lmjax') or '',
        )
        self._retain()
    except BaseException as e:  # kept for the training thread, whatever it is
      self._error = e
      _LOG.error('saving step %d to %s failed: %s', step, self.directory, e)

  def _make_room(self, step: int) -> None:
    """Renames what stands where the step goes: a killed save, or a checkpoint of another run of
    this directory.
    """
    self.directory.mkdir(parents=True, exist_ok=True)
    for old in list(self.directory.iterdir()):
      if old.name == str(step) or old.name.startswith(f'{step}{_TMP}'):
        why = 'incomplete' if manifest.verify(old, checksums=False) else 'replaced'
        n = next(n for n in range(10**6) if not (self.directory / f'{why}-{step}-{n}').exists())
        aside = self.directory / f'{why}-{step}-{n}'
        old.rename(aside)
        _LOG.warning('%s was moved to %s; delete it when you no longer need it', old, aside.name)

  def _update_scores(self, step: int, scores: dict) -> None:
    if scores and jax.process_index() == 0:
      body = manifest.read(self.directory / str(step))
      manifest.put(self.directory / str(step), body | {'scores': body['scores'] | scores})

  def _retain(self) -> None:
    with self._lock:
      self._delete_old(self._scan())

  def _delete_old(self, found: Mapping[int, dict]) -> None:
    keep = set(sorted(found)[-self._keep_last :]) if self._keep_last else set(found)
    keep |= {s for s in found if self._keep_every and s % self._keep_every == 0}
    keep |= {_best(found, self._best_key)} if self._best_key else set()
    for step in sorted(found.keys() - keep):
      manifest.remove(self.directory / str(step))
    for entry in list(self.directory.iterdir()):  # a deletion that a kill interrupted
      if entry.name.isdigit() and (entry / manifest.DOOMED).exists():
        manifest.remove(entry)

  # ---------------------------------------------------------------- reading

  def steps(self) -> list[int]:
    """Complete steps in ascending order: those with a manifest whose files are there with the right
    sizes.
    """
    return _from_primary(lambda: sorted(self._complete()))

  def latest(self) -> int | None:
    return max(self.steps(), default=None)

  def best(self) -> int | None:
    """The step with the lowest score, or None when no step has one."""
    return _from_primary(lambda: _best(self._complete(), self._score_key))

  def scores(self, step: int) -> dict[str, float]:
    """The scores saved with a step."""
    return _from_primary(lambda: self._read(step)['scores'])

  def restore(self, step: int, like: Any) -> tuple[Any, dict]:
    """The state in the structure of `like`, and the cursor.

    Args:
      like: a tree of `jax.ShapeDtypeStruct` or arrays. A leaf's sharding decides where it goes,
        whatever mesh it was saved on; without one it goes to the first local device. 64-bit values
        stay NumPy arrays where JAX has 32 bits.

    Raises:
      ValueError: a file is damaged (named), or an array's presence, shape or dtype differs (path
        and both values named).
    """
    wanted = tree_lib.named_leaves(like)
    described = {k: tree_lib.describe(v) for k, v in wanted.items()}
    body = _from_primary(lambda: self._trusted(step, described))
    args = {k: tree_lib.restore_args(wanted[k], body['leaves'][k]) for k in wanted}
    out = self._load(step, tree_lib.nest(args), partial=False, cursor=ocp.args.JsonRestore())
    leaves = [tree_lib.opened(tree_lib.find(out.state, k), body['leaves'][k]) for k in wanted]
    self._mine.add(step)
    return jax.tree.unflatten(jax.tree.structure(like), leaves), dict(out.cursor)

  def restore_params(self, step: int, *, only: tuple[str, ...] = ()) -> dict[str, Any]:
    """The tree as nested dictionaries of NumPy arrays, without the config or classes of the run, on
    any machine.

    Args:
      only: top-level entries to read, such as ('params', 'vars'); all by default.

    Raises:
      ValueError: a file is damaged, or an entry of `only` does not exist.
    """
    body = _from_primary(lambda: self._trusted(step))
    top = {k.split('/')[0] for k in [*body['leaves'], *body['empty']]}
    if unknown := sorted(set(only) - top):
      raise ValueError(
        f'{unknown[0]!r} is not in checkpoint {self.directory / str(step)}; '
        f'it has {", ".join(sorted(top))}'
      )
    chosen = [k for k in body['leaves'] if not only or k.split('/')[0] in only]
    args = tree_lib.nest({k: ocp.RestoreArgs(restore_type=np.ndarray) for k in chosen})
    found = self._load(step, args, partial=bool(only)).state if chosen else {}
    empty = {k: {} for k in body['empty'] if not only or k.split('/')[0] in only}
    flat = {k: tree_lib.find(found, k) for k in chosen} | empty
    return tree_lib.nest(flat, key=tree_lib.plain_key)

  def _load(self, step: int, restore_args: Any, *, partial: bool, **more: Any) -> Any:
    args = ocp.args.PyTreeRestore(
      item=restore_args, restore_args=restore_args, partial_restore=partial
    )
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
      return reader.restore(self.directory / str(step), args=ocp.args.Composite(state=args, **more))

  def _complete(self) -> dict[int, dict]:
    with self._lock:
      return self._scan()

  def _scan(self) -> dict[int, dict]:
    """Manifests of the complete steps; an incomplete step is warned of once."""
    out = {}
    for entry in list(self.directory.iterdir()) if self.directory.is_dir() else ():
      doomed = entry / manifest.DOOMED
      if not entry.name.isdigit() or not entry.is_dir() or doomed.exists():
        continue
      step = int(entry.name)
      problems = manifest.verify(entry, checksums=False)
      if not problems:
        out[step] = manifest.read(entry)
      elif step != self._saving and entry.name not in self._warned:
        self._warned.add(entry.name)
        _LOG.warning('checkpoint %s is incomplete and not used: %s', entry, problems[0])
    return out

  def _read(self, step: int) -> dict:
    try:
      return manifest.read(self.directory / str(step))
    except manifest.ManifestError as e:
      there = ', '.join(map(str, sorted(self._complete()))) or 'none'
      raise ValueError(
        f'no complete checkpoint of step {step} in {self.directory} ({e}); complete steps: {there}'
      ) from None

  def _trusted(self, step: int, wanted: Mapping[str, Any] | None = None) -> dict:
    body = self._read(step)
    _refuse(
      f'checkpoint {self.directory / str(step)} is damaged',
      manifest.verify(self.directory / str(step)),
    )
    if wanted is not None:
      _refuse(
        f'checkpoint {self.directory / str(step)} does not fit',
        tree_lib.differences(body['leaves'], wanted),
      )
    return body


def _refuse(what: str, problems: list[str]) -> None:
  if problems:
    more = f'; and {len(problems) - _SHOWN} more' if len(problems) > _SHOWN else ''
    raise ValueError(f'{what}: {"; ".join(problems[:_SHOWN])}{more}')


def _check_json(value: Any, what: str) -> None:
  try:
    json.dumps(value)
  except (TypeError, ValueError) as e:
    raise ValueError(
      f'the {what} of a checkpoint holds JSON values only '
      f'(numbers, strings, lists, dictionaries): {e}'
    ) from None


def _best(found: Mapping[int, dict], key: str | None) -> int | None:
  scored = [(body['scores'][key], step) for step, body in found.items() if key in body['scores']]
  scored = [(score, step) for score, step in scored if not math.isnan(score)]
  return min(scored)[1] if scored else None


def _from_primary(fn: Any) -> Any:
  """fn() of process 0, given to all processes (a JSON value); its ValueError is raised on all."""
  if jax.process_count() == 1:
    return fn()
  from jax.experimental import multihost_utils

  out = {}
  if jax.process_index() == 0:
    try:
      out = {'value': fn()}
    except Exception as e:  # every process must leave the collective, and then fail alike
      out = {'error': str(e)}
  text = np.frombuffer(json.dumps(out).encode(), np.uint8)
  size = int(multihost_utils.broadcast_one_to_all(np.int32(text.size)))
  text = np.resize(text, size) if jax.process_index() == 0 else np.zeros(size, np.uint8)
  out = json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(text))).decode())
  if 'error' in out:
    raise ValueError(out['error'])
  return out['value']
