"""Where a run begins: a checkpoint of its own, another run's parameters, or new ones."""

import dataclasses
import pathlib
from typing import Any, Collection, Iterator

import jax

from lmjax import bucket
from lmjax import build as build_lib
from lmjax import config as config_lib
from lmjax import files
from lmjax import kinds
from lmjax import own_files
from lmjax import progress
from lmjax import registry
from lmjax import rundir
from lmjax import specs
from lmjax.checkpoint import Checkpointer
from lmjax.data import skips as skips_lib
from lmjax.parallel import processes


@dataclasses.dataclass(frozen=True)
class Choice:
  """What a person may ask of a resume.

  older: pass over damaged checkpoints. skip_batches: batches to leave out from now on, as in
    '1200:1400, 1512'.
  """

  older: bool = False
  skip_batches: str = ''


AS_IT_IS = Choice()


class Restorer:
  """Finds and restores the states of one run."""

  def __init__(self, run: build_lib.Run, checkpoints: Checkpointer, feed, workdir: Any):
    self._run, self._checkpoints, self._feed, self._workdir = run, checkpoints, feed, workdir

  def first(self, choice: Choice = AS_IT_IS) -> Any:
    """The state that training begins with. Raises ValueError where `choice` cannot be honoured."""
    ranges = skips_lib.parse(choice.skip_batches) if choice.skip_batches else []
    step = self._chosen(choice)
    state = self._state(step)
    if ranges:
      self._skip(ranges, 0 if step is None else step)
    if not choice.older:  # what an interrupted rewind went back from
      self._checkpoints.set_aside(after=0 if step is None else step)
    return state

  def at_most(self, step: int) -> Any:
    """The state of the newest checkpoint up to a step, else the first one; newer ones are put
    aside, since the run takes another course from here.
    """
    found = max((s for s in self._checkpoints.steps() if s <= step), default=None)
    state = self._state(found)
    self._checkpoints.set_aside(after=0 if found is None else found)
    return state

  def _chosen(self, choice: Choice) -> int | None:
    steps = self._checkpoints.offered()  # the damaged ones too: a restore refuses them by name
    if choice.older and steps and self._checkpoints.latest_whole() is None:
      raise ValueError(
        f'--allow_older_checkpoint: no checkpoint in {self._checkpoints.directory} is whole '
        f'(damaged: {", ".join(map(str, steps))}); give another --workdir to start anew'
      )
    newest_first = self._whole() if choice.older else reversed(steps)
    return next(filter(self._fits, newest_first), None)

  def _whole(self) -> Iterator[int]:
    step = self._checkpoints.latest_whole()
    while step is not None:
      yield step
      step = self._checkpoints.latest_whole(below=step)

  def _fits(self, step: int) -> bool:
    """Whether a checkpoint saw the batches that today's skips leave. False where a rewind left out
    what it saw, and was interrupted; raises ValueError where anything else differs.
    """
    left = self._checkpoints.cursor(step).get('skips', [])
    seen, skips = skips_lib.Skips.of(map(tuple, left)), self._feed.skips
    if seen == skips.past(step):
      return True
    rewinds = skips_lib.read(self._workdir, why=skips_lib.REWIND)
    if seen.joined(rewinds).past(step) == skips.past(step):
      return False
    raise ValueError(
      f'{self._workdir / skips_lib.FILE} does not belong to the checkpoint of step {step}: up to '
      f'there the file leaves out {specs.cut(str(skips.past(step)), 100)}, but the checkpoint '
      f'{specs.cut(str(seen), 100)}; restore the file, or go back before the difference with: '
      f'python -m lmjax.checkpoint rewind {self._workdir} --step=N'
    )

  def _state(self, step: int | None) -> Any:
    run = self._run
    if step is not None:
      state, cursor = self._checkpoints.restore(step, abstract_state(run))
      self._feed.check(cursor, step)
      return state
    state = run.init(jax.random.fold_in(jax.random.key(run.config['seed']), 0))
    if run.config['init_from']:
      state = begin(run, state)
    return with_held(run, state)

  def _skip(self, ranges, step: int) -> None:
    skips, at = self._feed.skips, self._feed.skips.batch(step)
    joined = skips.joined(skips_lib.Skips.of(ranges))
    if joined == skips:
      return  # the same command again
    early = min(ranges)[0]
    if joined.before(at) != skips.before(at):
      raise ValueError(
        f'--skip_batches: batch {early} was trained on before step {step}, where this run goes on '
        f'at batch {at}; go back first, as in: python -m lmjax.checkpoint rewind {self._workdir} '
        f'--step=N'
      )
    why = f'--skip_batches at step {step}'
    add = lambda: skips_lib.add(self._workdir, ranges, why).ranges
    self._feed.skips = skips_lib.Skips.of(map(tuple, processes.from_primary(add)))
    progress.say(f'batches left out from here on: {ranges}')


def abstract_state(run: build_lib.Run):
  shardings = run.shardings()
  if shardings is None:
    return run.state_shapes
  return jax.tree.map(
    lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), run.state_shapes, shardings
  )


def begun_from(run: build_lib.Run) -> str:
  """The run directory, or checkpoint, that `config.init_from` names."""
  part = config_lib.surgery(run.config['init_from'])
  return run.config['init_from'] if part is None else part().run


def begin(run: build_lib.Run, state: Any) -> Any:
  """This run's first state with the variables of another run's best-known checkpoint, placed like
  its own; through a surgery, where `config.init_from` names one, else shapes must agree, and what
  the objective remembers of a run begins anew.
  """
  part, source = config_lib.surgery(run.config['init_from']), begun_from(run)
  where, full = f'config.init_from={run.config["init_from"]}', abstract_state(run)
  reader, step = find_checkpoint(source, 'config.init_from: ')
  if part is None:
    check_prescribed(run, source, where)
  found = reader.restore_params(step, only=('params', 'vars'))
  if part is None:
    own = run_memory(run.config)
    vars = {k: v for k, v in full.vars.items() if k not in own}
    taken = dict(found, vars=carried(found['vars'], vars, source, where))
    made = fitted(taken, dict(params=full.params, vars=vars), where)
    return state.replace(params=made['params'], vars={**state.vars, **made['vars']})
  theirs = built(source)
  stage = lambda r, params, vars: kinds.Stage(
    r.config, r.model, r.network, dict(params=params, **vars), r.facts
  )
  old, new = stage(theirs, **found), stage(run, state.params, state.vars)
  operate, rng = part(), jax.random.fold_in(jax.random.key(run.config['seed']), 2)
  try:
    variables = dict(operate(old, new, rng))
    opt = state.opt
    if hasattr(operate, 'optimizer'):
      old_opt = reader.restore_params(step, only=('opt',))['opt']
      opt = operate.optimizer(old, new, old_opt, state.opt, rng)
  except (ValueError, KeyError) as e:
    raise ValueError(f'{where}: {e.args[0] if e.args else e}') from e
  found = dict(params=variables.pop('params'), vars=variables)
  made = fitted(found, dict(params=full.params, vars=full.vars), where)
  put = lambda a, like: jax.device_put(a.astype(like.dtype), like.sharding)
  return state.replace(**made, opt=jax.tree.map(put, opt, full.opt))


def run_memory(config: dict[str, Any]) -> set[str]:
  """Collections of variables that are of one run alone, by its objective's facts."""
  part = registry.make('objective', config['objective'])
  return {*part.fact('memory'), *part.fact('holds')}


def carried(found: dict, like: dict, source: str, where: str) -> dict[str, Any]:
  """The collections of `found` that this run has, like `like`. Raises ValueError naming one that
  only one of the two runs has, but for what is the other objective's memory.
  """
  config = _read(source)
  known = config is not None and not specs.outside(config['objective'])
  theirs = run_memory(config) if known else set()
  filled = lambda tree: {k for k, v in tree.items() if jax.tree.leaves(v)}
  for name in sorted((filled(found) ^ filled(like)) - theirs):
    here, there = ('no', 'a') if name in found else ('a', 'no')
    raise ValueError(
      f'{where}: it has {there} collection {name!r} of variables and this config makes {here} such '
      'one; a run of the same config.model is expected, or a surgery (--list surgery)'
    )
  return {k: found.get(k, {}) for k in like}


def check_prescribed(run: build_lib.Run, source: str, where: str):
  """Raises ValueError where variables of the other run were made by other arguments than this
  run's, of which their shapes say nothing (fact `prescribes` of the linear part).
  """
  ours, config = run.model.scheme.linear, _read(source)
  spec = None if config is None else config['model']['linear']
  if spec is None or specs.call(spec).name != ours.name:
    return
  theirs = dict(registry.make('linear', spec).args)
  for key, value in ours.args:
    if key in ours.fact('prescribes') and theirs[key] != value:
      raise ValueError(
        f'{where}: its variables were made by config.model.linear.{ours.name}.{key}='
        f'{theirs[key]!r}, this config says {value!r}; {theirs[key]!r} is expected'
      )


def with_held(run: build_lib.Run, state: Any) -> Any:
  """The state with the collections that hold other runs' variables (fact `holds` of the objective).
  Raises ValueError where those are not of the same model and tokenizer.
  """
  vars = dict(state.vars)
  for name, where, reader, step in _held(run):
    like = abstract_state(run).vars[name]
    found = reader.restore_params(step, only=('params', 'vars'))
    found = {'params': found['params'], **found['vars']}
    vars[name] = fitted({k: found[k] for k in like if k in found}, like, where.rstrip(': '))
  return state.replace(vars=vars)


def check_sources(run: build_lib.Run):
  """Raises ValueError where a run that this one takes variables from is not there, or holds another
  model; nothing is read of it yet.
  """
  if run.config['init_from']:
    find_checkpoint(begun_from(run), where='config.init_from: ')
  for _ in _held(run):
    pass


def _held(run: build_lib.Run):
  """(collection, what errors begin with, its checkpoints, step) of the runs that are held."""
  for name, source in registry.make('objective', run.config['objective']).fact('holds').items():
    where = f'config.objective: {name}={source!r}: '
    reader, step = find_checkpoint(source, where)
    theirs = config_of(source)
    ours, other = (config_lib.flat(c['model']) for c in (run.config, theirs))
    for key in sorted(ours.keys() | other.keys()):
      if f'model.{key}' not in config_lib.OUTSIDE_FINGERPRINT and ours.get(key) != other.get(key):
        raise ValueError(
          f'{where}its config.model.{key} is {other.get(key)!r}, this one is {ours.get(key)!r}; a '
          'run of the same model is expected'
        )
    if build_lib.tokenizer(theirs).fingerprint() != run.tokenizer.fingerprint():
      raise ValueError(
        f'{where}its config.data.tokenizer={theirs["data"]["tokenizer"]!r} is another one than '
        f'{run.config["data"]["tokenizer"]!r}; a run with the same tokens is expected'
      )
    yield name, where, reader, step


def built(source: str) -> build_lib.Run:
  """The run of a run directory, or of one of its checkpoints. Raises ValueError."""
  return build_lib.build(config_of(source))


def config_of(source: str) -> dict[str, Any]:
  """The resolved config of a run directory, or of one of its checkpoints. Raises ValueError."""
  folder = _folder(source)
  config = own_files.config(folder)
  config_lib.refuse_code(config, f'{folder}/config.json')
  return config_lib.resolve(config)


def path_of(source: Any) -> Any:
  """The path of a run or checkpoint. Raises ValueError where its object store cannot be used."""
  text = files.expanded(source)
  return bucket.place(text) if '://' in text else pathlib.Path(text)


def _folder(source: str) -> Any:
  """The run directory that a checkpoint lies in; the path itself where there is none."""
  path = path_of(source)
  path = path if bucket.is_remote(path) else path.resolve()
  above = [p for p in path.parents[:2] if not bucket.is_root(p)]
  return next((p for p in (path, *above) if (p / 'config.json').is_file()), path)


def _read(source: str) -> dict[str, Any] | None:
  """The config of a run directory or checkpoint as it was written, None where it lies alone."""
  folder = _folder(source)
  return rundir.read_config(folder) if (folder / 'config.json').is_file() else None


def fitted(found: dict, like: dict, where: str) -> dict[str, Any]:
  """Arrays placed, and cast, like abstract ones. Raises ValueError naming what is absent or differs
  in shape.
  """

  def place(path, want):
    value, name = found, '/'.join(k.key for k in path)
    for k in path:
      if not isinstance(value, dict) or k.key not in value:
        raise ValueError(f'{where}: it has no parameter {name}')
      value = value[k.key]
    if value.shape != want.shape:
      raise ValueError(
        f'{where}: {name} has shape {value.shape}, this config makes it {want.shape}'
      )
    return jax.device_put(value.astype(want.dtype), want.sharding)

  out = jax.tree_util.tree_map_with_path(place, like)
  have, want = len(jax.tree.leaves(found)), len(jax.tree.leaves(like))
  if have != want:
    raise ValueError(f'{where}: it has {have} arrays, this config has {want}')
  return out


def find_checkpoint(source: str, where: str = '') -> tuple[Checkpointer, int]:
  """A run directory, its `checkpoints`, or one step of it: (reader, step). The best step where
  scores are known, else the last. Raises ValueError, which begins with `where`.
  """
  try:
    path = path_of(source)
  except ValueError as e:
    raise ValueError(f'{where}{e}') from None
  is_run = (path / 'checkpoints').is_dir()  # its name may be a date
  if path.name.isdigit() and path.is_dir() and not is_run:
    reader, step = Checkpointer(path.parent), int(path.name)
    if step not in reader.offered():
      raise ValueError(f'{where}{source}: no complete checkpoint')
    return reader, step
  folder = path / 'checkpoints' if is_run else path
  if not folder.is_dir():
    raise ValueError(f'{where}{source}: no such directory')
  reader = Checkpointer(folder)
  step = reader.best()
  step = reader.latest() if step is None else step
  if step is None:
    raise ValueError(f'{where}{source}: no complete checkpoint in {folder}')
  return reader, step


def load(workdir: Any, *, allow_code: bool = False) -> tuple[build_lib.Run, Any, Any, int]:
  """(run, params, vars, step) of a run directory's best checkpoint, on one device.

  The directory may come from anywhere: code that its config names is not imported unless allowed.
  """
  run = build_lib.build(resolved(workdir, allow_code=allow_code))
  return run, *best(run, workdir)


def resolved(workdir: Any, *, allow_code: bool = False) -> dict[str, Any]:
  """The config of a run directory, whose code is not imported unless allowed. Raises ValueError."""
  config = own_files.config(workdir)
  if not allow_code:
    config_lib.refuse_code(config, f'{workdir}/config.json')
  return config_lib.resolve(config)


def best(run: build_lib.Run, workdir: Any, without: Collection[str] = ()) -> tuple[Any, Any, int]:
  """(params, vars, step) of a run directory's best checkpoint, on one device, but for collections
  of variables that the caller has no use for.
  """
  reader, step = find_checkpoint(workdir)
  found = reader.restore_params(step, only=('params', 'vars'))
  found['vars'] = {k: v for k, v in found['vars'].items() if k not in without}
  vars = {k: v for k, v in run.shapes.items() if k != 'params'}
  like = dict(params=run.shapes['params'], vars=vars)
  out = fitted(found, like, f'{workdir}, checkpoint of step {step}')
  return out['params'], out['vars'], step
