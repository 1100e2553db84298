"""What a directory of checkpoints offers, and strict restores from it.

Invariants. A step without a manifest is never offered; a damaged one is offered and refused, so
that no run goes on from an older one unasked. A restore checks every checksum, and the tree, shapes
and dtypes, before it trusts an array. Reading never writes.

With several processes, every method is called by all of them, as with collectives.
"""

import logging
import math
import threading
from typing import Any, Iterable, Mapping

from etils import epath
import jax
import orbax.checkpoint as ocp

from lmjax import bucket
from lmjax.checkpoint import arrays
from lmjax.checkpoint import manifest
from lmjax.checkpoint import scan
from lmjax.checkpoint import tree as tree_lib
from lmjax.parallel import processes

_LOG = logging.getLogger(__name__)


class Reader:
  """Reads the checkpoints of one run."""

  def __init__(self, directory: Any, *, best_key: str = 'loss'):
    remote = bucket.is_remote(directory)
    self.directory = bucket.path(directory) if remote else epath.Path(directory).absolute()
    if self.directory.exists() and not self.directory.is_dir():
      raise ValueError(f'the checkpoint directory {self.directory} is a file')
    self._score_key = best_key
    self._saving: int | None = None  # a step that is being written
    self._failed: dict[int, str] = {}  # steps whose checksums do not hold; process 0 knows
    self._warned: set[str] = set()
    self._lock = threading.Lock()  # retention runs beside readers

  # ---------------------------------------------------------------- what there is

  def steps(self) -> list[int]:
    """Whole steps in ascending order: those with a manifest whose files are there with the right
    sizes.
    """
    return processes.from_primary(lambda: sorted(self._found().whole))

  def offered(self) -> list[int]:
    """Steps with a manifest in ascending order, damaged ones included: a choice among them meets
    the refusal of `restore`, where one among `steps` would pass over them in silence.
    """
    return processes.from_primary(lambda: self._found().offered())

  def latest(self) -> int | None:
    """The newest step with a manifest, damaged or not."""
    return max(self.offered(), default=None)

  def latest_whole(self, below: float = math.inf) -> int | None:
    """The newest step, under `below`, whose every file is what was saved, checksums included, or
    None.
    """
    return processes.from_primary(lambda: self._newest_whole(below))

  def best(self) -> int | None:
    """The whole step with the lowest score, or None when no step has one."""
    return processes.from_primary(lambda: scan.best(self._found().whole, self._score_key))

  def scores(self, step: int) -> dict[str, float]:
    """The scores saved with a step."""
    return processes.from_primary(lambda: self._read(step)['scores'])

  def cursor(self, step: int) -> dict[str, Any]:
    """The cursor saved with a step; raises ValueError where it is damaged."""

    def read():
      where = self.directory / str(step)
      if manifest.exists(where) and (problems := manifest.verify(where, below='cursor/')):
        raise self._damaged(step, problems, resume=True)
      self._read(step)
      return arrays.cursor(where)

    return processes.from_primary(read)

  def _found(self) -> scan.Found:
    with self._lock:
      return self._scan()

  def _scan(self) -> scan.Found:
    """The steps there are; each that is not whole is warned of once."""
    found = scan.scan(self.directory)
    for step, problem in found.unfinished.items():
      if step != self._saving:
        self._warn(str(step), 'is incomplete and not used: %s', problem)
    for step, problem in found.damaged.items():
      self._warn(str(step), 'is damaged: %s', problem)
    for step in self._failed.keys() & found.whole.keys():
      del found.whole[step]
      found.damaged[step] = self._failed[step]
    return found

  def _warn(self, name: str, text: str, problem: str) -> None:
    if name not in self._warned:
      self._warned.add(name)
      _LOG.warning(f'checkpoint %s {text}', self.directory / name, problem)

  def _newest_whole(self, below: float = math.inf) -> int | None:
    step, failed = scan.newest_whole(self.directory, self._found(), below)
    self._failed |= failed
    for s, problem in failed.items():
      self._warn(str(s), 'is damaged: %s', problem)
    return step

  # ---------------------------------------------------------------- restoring

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
    body = processes.from_primary(lambda: self._trusted(step, described))
    args = {k: tree_lib.restore_args(wanted[k], body['leaves'][k]) for k in wanted}
    where, json_args = self.directory / str(step), ocp.args.JsonRestore()
    out = arrays.load(where, tree_lib.nest(args), partial=False, cursor=json_args)
    leaves = [tree_lib.opened(tree_lib.find(out.state, k), body['leaves'][k]) for k in wanted]
    return jax.tree.unflatten(jax.tree.structure(like), leaves), dict(out.cursor)

  def restore_params(self, step: int, *, only: Iterable[str] = ()) -> dict[str, Any]:
    """The tree as nested dictionaries of NumPy arrays, without the config or classes of the run, on
    any machine.

    Args:
      only: top-level entries to read, such as ('params', 'vars'); all by default.

    Raises:
      ValueError: a file is damaged, or an entry of `only` does not exist.
    """
    only, where = tuple(only), self.directory / str(step)
    body = processes.from_primary(lambda: self._trusted(step))
    flat = arrays.read(where, body, arrays.chosen(where, body, only))
    flat |= {k: {} for k in body['empty'] if not only or k.split('/')[0] in only}
    return tree_lib.nest(flat, key=tree_lib.plain_key)

  def _read(self, step: int) -> dict:
    where = self.directory / str(step)
    if not manifest.exists(where):
      there = ', '.join(map(str, sorted(self._found().whole))) or 'none'
      raise ValueError(
        f'no complete checkpoint of step {step} in {self.directory}; complete steps: {there}'
      )
    try:
      return manifest.read(where)
    except manifest.ManifestError as e:
      raise self._damaged(step, [str(e)], resume=False) from None

  def _trusted(self, step: int, wanted: Mapping[str, Any] | None = None) -> dict:
    """The manifest of a step, once every file is what was saved and the arrays are the wanted."""
    where = self.directory / str(step)
    if manifest.exists(where) and (problems := manifest.verify(where)):
      raise self._damaged(step, problems, resume=wanted is not None)
    body = self._read(step)
    if wanted is not None:
      differences = tree_lib.differences(body['leaves'], wanted)
      arrays.refuse(f'checkpoint {where} does not fit', differences)
    return body

  def _damaged(self, step: int, problems: list[str], *, resume: bool) -> ValueError:
    """The refusal of a damaged step, with what there is instead."""
    self._failed[step] = problems[0]
    newest = self._newest_whole()
    if newest is None:
      hint = '; no other step is whole'
    elif resume and newest < step:
      hint = f'; --allow_older_checkpoint would use step {newest}, the newest whole one'
    else:
      hint = f'; the newest whole step is {newest}'
    return arrays.refusal(f'checkpoint {self.directory / str(step)} is damaged', problems, hint)
