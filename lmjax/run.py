"""A whole run: opens the directory, builds, restores, trains, evaluates, reports."""

import contextlib
import os
import pathlib
import time
from typing import Any

import jax

from lmjax import build as build_lib
from lmjax import config as config_lib
from lmjax import exits
from lmjax import feed as feed_lib
from lmjax import loop
from lmjax import progress
from lmjax import restore
from lmjax import rundir
from lmjax import stop as stop_lib
from lmjax.checkpoint import CheckpointError
from lmjax.checkpoint import Checkpointer
from lmjax.parallel import processes
from lmjax.tracking import Tracker


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
  choice: restore.Choice = restore.AS_IT_IS,
  started: float | None = None,
) -> int:
  """Trains, or resumes the run in `workdir`. Returns the exit status.

  Raises ValueError on what the user gave, exits.Ended where the run ends for another reason.
  """
  started = time.monotonic() if started is None else started
  compilation_cache()
  with stop_lib.Stop() as stop:
    run = build_lib.build(resolved)
    mesh = build_lib.mesh(resolved)
    build_lib.check_devices(run, mesh)
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
      path, feed = _open(run, workdir, mesh, force=allow_config_change)
      try:
        return _train(run, path, feed, choice, stop, started)
      except CheckpointError as e:  # of the save under way while the run ended
        raise exits.Ended(exits.DISK, str(e)) from e
      finally:
        path.close()


def _open(run: build_lib.Run, workdir: str, mesh, *, force: bool):
  """(run directory, feed)."""

  def open_dir(write: bool):
    return rundir.open_rundir(
      workdir,
      run.config,
      config_lib.fingerprint(run.config),
      force=force,
      ignore=config_lib.OUTSIDE_FINGERPRINT,
      write=write,
    )

  open_dir(write=False)  # a directory of another run is refused before its data is read,
  fresh = lambda: not (pathlib.Path(workdir) / 'checkpoints').is_dir()
  if run.config['init_from'] and processes.from_primary(fresh):
    restore.find_checkpoint(run.config['init_from'], where='config.init_from: ')
  try:
    pathlib.Path(workdir).mkdir(parents=True, exist_ok=True)
  except OSError as e:
    raise ValueError(
      f'workdir {workdir!r} cannot be written: {e.strerror}; give a directory that you may write to'
    ) from None
  feed = processes.primary_first(lambda: feed_lib.Feed(run, pathlib.Path(workdir), mesh))
  # ... and data that cannot be read claims no directory.
  return open_dir(write=jax.process_index() == 0), feed


def _train(run, path: rundir.RunDir, feed, choice, stop: stop_lib.Stop, started: float) -> int:
  c, active = run.config, jax.process_index() == 0
  if not active:
    progress.quiet()
  checkpoints = checkpointer(c, path.path)
  restorer = restore.Restorer(run, checkpoints, feed, path.path)
  state = restorer.first(choice)
  start, n = int(state.step), build_lib.counts(run)['total']
  progress.say(
    f'{n:,} parameters, {build_lib.state_bytes(run)["total"]:.3g} bytes of optimizer state each, '
    f'{c["steps"]:,} steps of {c["batch_tokens"]:,} tokens on '
    f'{jax.device_count()} {jax.devices()[0].device_kind} device(s); {feed.describe()}; run '
    f'directory {path.path}'
  )
  if start:
    progress.say(f'resumed at step {start}')
  if start >= c['steps']:
    progress.say(f'this run is complete: {start} of {c["steps"]} steps')
    checkpoints.close()
    return 0
  sample = sampler(run)
  try:
    with (
      Tracker(
        path.path,
        resume_step=start if path.resumed else None,
        tensorboard=c['tensorboard'],
        active=active,
      ) as tracker,
      checkpoints,
    ):
      trainer = loop.Trainer(
        run,
        feed,
        tracker,
        checkpoints,
        restore=restorer.at_most,
        workdir=path.path,
        sampler=sample,
        started=started,
      )
      with stop.held():
        state = trainer.train(state, stop)
      if stop.signal is not None:
        return exits.RETRY
      if c['eval']['tasks']:
        score(run, state.params, state.vars, c['eval']['tasks'], tracker, int(state.step))
  finally:
    if c['report'] and active:
      _report(path.path)
  if sample is not None and c['sample']['tokens']:
    progress.say('sample:\n' + sample(state.params, state.vars, int(state.step)))
  progress.say(f'done: {path.path / "report.html"}' if c['report'] else f'done: {path.path}')
  return 0


def _report(path: pathlib.Path):
  from lmjax import report

  try:
    report.write_report(path)
  except OSError as e:  # what the run learnt is in its metrics
    progress.say(f'{path / "report.html"} cannot be written: {e.strerror or e}')


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


def evaluate(workdir: str, names: str, *, allow_code: bool = False) -> int:
  """--eval: scores the best checkpoint, prints a table, and adds the scores to metrics.jsonl."""
  compilation_cache()
  run, params, vars, step = restore.load(workdir, allow_code=allow_code)
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
