"""A whole run: opens the directory, builds, restores, trains, evaluates, reports."""

import contextlib
import os
import pathlib
import time
from typing import Any

import jax

from lmjax import build as build_lib
from lmjax import config as config_lib
from lmjax import feed as feed_lib
from lmjax import loop
from lmjax import progress
from lmjax import rundir
from lmjax.checkpoint import Checkpointer
from lmjax.tracking import Tracker

EXIT_STOPPED = 75


def compilation_cache():
  """Keeps compiled programs between runs, unless the user set a place (or '') for them."""
  if jax.config.jax_compilation_cache_dir is None and 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    home = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
    jax.config.update('jax_compilation_cache_dir', os.path.join(home, 'lmjax', 'xla'))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


def checkpointer(config: dict[str, Any], workdir) -> Checkpointer:
  return Checkpointer(
    pathlib.Path(workdir) / 'checkpoints',
    keep_last=config['keep_last'],
    keep_every=config['keep_every'],
    keep_best=config['keep_best'],
  )


def train(
  resolved: dict[str, Any],
  workdir: str,
  *,
  allow_config_change: bool = False,
  started: float | None = None,
) -> int:
  """Trains, or resumes the run in `workdir`. Returns the exit status. Raises ValueError on what the
  user gave.
  """
  started = time.monotonic() if started is None else started
  compilation_cache()
  run = build_lib.build(resolved)
  mesh = build_lib.mesh(resolved)
  build_lib.check_devices(run, mesh)

  def open_dir(write: bool):
    return rundir.open_rundir(
      workdir,
      resolved,
      config_lib.fingerprint(resolved),
      force=allow_config_change,
      ignore=config_lib.OUTSIDE_FINGERPRINT,
      write=write,
    )

  with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
    open_dir(write=False)  # a directory of another run is refused before its data is read,
    try:
      pathlib.Path(workdir).mkdir(parents=True, exist_ok=True)
    except OSError as e:
      raise ValueError(
        f'workdir {workdir!r} cannot be written: {e.strerror}; give a directory that you may write '
        'to'
      ) from None
    feed = feed_lib.Feed(run, pathlib.Path(workdir), mesh)
    path = open_dir(
      write=jax.process_index() == 0
    )  # and data that cannot be read claims no directory
    try:
      return _train(run, path, feed, started)
    finally:
      path.close()


def _train(run: build_lib.Run, path: rundir.RunDir, feed, started: float) -> int:
  c = run.config
  checkpoints = checkpointer(c, path.path)
  state, start = first_state(run, checkpoints, feed)
  n = build_lib.counts(run)['total']
  progress.say(
    f'{n:,} parameters, {c["steps"]:,} steps of {c["batch_tokens"]:,} tokens on '
    f'{jax.device_count()} '
    f'{jax.devices()[0].device_kind} device(s); {feed.describe()}; run directory {path.path}'
  )
  if start:
    progress.say(f'resumed at step {start}')
  if start >= c['steps']:
    progress.say(f'this run is complete: {start} of {c["steps"]} steps')
    checkpoints.close()
    return 0
  try:
    with (
      Tracker(
        path.path, resume_step=start if path.resumed else None, tensorboard=c['tensorboard']
      ) as tracker,
      loop.Stop() as stop,
      checkpoints,
    ):
      trainer = loop.Trainer(run, feed, tracker, checkpoints, sampler=sampler(run), started=started)
      state = trainer.train(state, stop)
      if stop.signal is None and c['eval']['tasks']:
        score(run, state.params, state.vars, c['eval']['tasks'], tracker, int(state.step))
  finally:
    if c['report']:
      _report(path.path)
  if stop.signal is not None:
    return EXIT_STOPPED
  if c['sample']['tokens']:
    progress.say('sample:\n' + sampler(run)(state.params, state.vars, int(state.step)))
  progress.say(f'done: {path.path / "report.html"}' if c['report'] else f'done: {path.path}')
  return 0


def _report(path: pathlib.Path):
  from lmjax import report

  report.write_report(path)


def first_state(run: build_lib.Run, checkpoints: Checkpointer, feed) -> tuple[Any, int]:
  """(state, step): the newest complete checkpoint, else a new state, its parameters taken from
  `init_from` where set.
  """
  latest = checkpoints.latest()
  if latest is not None:
    state, cursor = checkpoints.restore(latest, abstract_state(run))
    feed.check(cursor, latest)
    return state, int(state.step)
  state = run.init(jax.random.fold_in(jax.random.key(run.config['seed']), 0))
  if run.config['init_from']:
    state = state.replace(**parameters_from(run, run.config['init_from']))
  return state, 0


def abstract_state(run: build_lib.Run):
  shardings = run.shardings()
  if shardings is None:
    return run.state_shapes
  return jax.tree.map(
    lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), run.state_shapes, shardings
  )


def parameters_from(run: build_lib.Run, source: str) -> dict[str, Any]:
  """{'params', 'vars'} of another run's best-known checkpoint, placed like this run's. Shapes must
  agree.
  """
  source_checkpoints, step = find_checkpoint(source)
  full = abstract_state(run)
  like = dict(params=full.params, vars=full.vars)
  restored = source_checkpoints.restore_params(step, only=('params', 'vars'))

  def place(path, want):
    value = restored
    name = '/'.join(k.key for k in path)
    for k in path:
      if not isinstance(value, dict) or k.key not in value:
        raise ValueError(f'config.init_from={source}: it has no parameter {name}')
      value = value[k.key]
    if value.shape != want.shape:
      raise ValueError(
        f'config.init_from={source}: {name} has shape {value.shape}, this config makes it '
        f'{want.shape}'
      )
    return jax.device_put(value.astype(want.dtype), want.sharding)

  out = jax.tree_util.tree_map_with_path(place, like)
  have, want = len(jax.tree.leaves(restored)), len(jax.tree.leaves(like))
  if have != want:
    raise ValueError(f'config.init_from={source}: it has {have} arrays, this config has {want}')
  return out


def find_checkpoint(source: str) -> tuple[Checkpointer, int]:
  """A run directory, its `checkpoints`, or one step of it: (reader, step). The best step where
  scores are known, else the last.
  """
  path = pathlib.Path(source)
  if path.name.isdigit() and path.is_dir():
    reader, step = Checkpointer(path.parent), int(path.name)
    if step not in reader.steps():
      raise ValueError(f'{source}: no complete checkpoint')
    return reader, step
  folder = path / 'checkpoints' if (path / 'checkpoints').is_dir() else path
  if not folder.is_dir():
    raise ValueError(f'{source}: no such directory')
  reader = Checkpointer(folder)
  step = reader.best()
  step = reader.latest() if step is None else step
  if step is None:
    raise ValueError(f'{source}: no complete checkpoint in {folder}')
  return reader, step


def load(workdir: str) -> tuple[build_lib.Run, Any, Any, int]:
  """(run, params, vars, step) of a run directory's best checkpoint, on one device."""
  resolved = config_lib.resolve(rundir.read_config(workdir))
  run = build_lib.build(resolved)
  reader, step = find_checkpoint(workdir)
  found = reader.restore_params(step, only=('params', 'vars'))
  like = jax.tree.map(lambda s: (s.shape, str(s.dtype)), dict(params=run.shapes['params']))
  have = jax.tree.map(lambda a: (a.shape, str(a.dtype)), dict(params=found['params']))
  if like != have:
    raise ValueError(f'{workdir}: the checkpoint of step {step} does not fit config.json')
  return run, jax.device_put(found['params']), jax.device_put(found.get('vars', {})), step


def language_model(run: build_lib.Run, params, vars):
  """The model as evals see it. Only a token that stood before text in training may stand there now.

  That is bos with `data.bos`; without it eos, where rows run across documents; else nothing does,
  and the first token of a text is not scored.
  """
  from lmjax import lm

  d, tok = run.config['data'], run.tokenizer
  prefix = tok.bos if d['bos'] else tok.eos if d['eos'] and not d['mask_documents'] else None
  return lm.LM(
    run.architecture,
    {'params': params, **vars},
    tok,
    length=run.length,
    prefix=prefix,
    bos=d['bos'] and prefix is not None,
  )


def evaluate(workdir: str, names: str) -> int:
  """--eval: scores the best checkpoint, prints a table, and adds the scores to metrics.jsonl."""
  compilation_cache()
  run, params, vars, step = load(workdir)
  with Tracker(workdir, tensorboard=False) as tracker:
    score(run, params, vars, names, tracker, step)
  _report(pathlib.Path(workdir))
  return 0


def score(run, params, vars, names: str, tracker, step: int):
  """Runs evals given as 'a,b' or as a chain of specs."""
  from lmjax import registry

  spec = ' | '.join(f'{n.strip()}()' for n in names.split(',')) if '(' not in names else names
  parts = registry.make_chain('eval', spec)
  model = language_model(run, params, vars)
  for name, part in parts.items():
    for s in part().run(model):
      error = '' if s.stderr is None else f' ± {s.stderr:.4f}'
      progress.say(f'{name}: {s.name} {s.value:.4f}{error}')
      tracker.log(
        'task', step, {'task': name, 'name': s.name, 'value': s.value, 'stderr': s.stderr}
      )


def sampler(run: build_lib.Run):
  """(params, vars, step) -> text, or None where the model cannot be sampled from token by token."""
  if not all(mixer.fact('cache') for _, mixer in run.model.mixers()):
    return None

  def sample(params, vars, step: int) -> str:
    from lmjax import generate

    s = run.config['sample']
    return generate.sample_text(
      run,
      {'params': params, **vars},
      s['prompt'],
      max_tokens=s['tokens'],
      rule=s['rule'],
      seed=step,
    )

  return sample
