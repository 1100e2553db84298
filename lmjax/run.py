"""A whole run: opens the directory, builds, restores, trains, evaluates, reports."""

import contextlib
import os
import secrets
import time
from typing import Any

import jax

from lmjax import build as build_lib
from lmjax import channels
from lmjax import checks
from lmjax import config as config_lib
from lmjax import exits
from lmjax import feed as feed_lib
from lmjax import files
from lmjax import kinds
from lmjax import loop
from lmjax import mesh_checks
from lmjax import progress
from lmjax import prompts
from lmjax import restore
from lmjax import rundir
from lmjax import stop as stop_lib
from lmjax.checkpoint import Checkpointer
from lmjax.parallel import processes
from lmjax.tracking import Tracker
from lmjax.tracking import read_metrics


SEEN = 10.0  # seconds until a file that one host has written must be seen by another


def compilation_cache():
  """Keeps compiled programs between runs, unless the user set a place (or '') for them."""
  if jax.config.jax_compilation_cache_dir is None and 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    jax.config.update('jax_compilation_cache_dir', str(files.cache() / 'xla'))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


def checkpointer(config: dict[str, Any], workdir) -> Checkpointer:
  return Checkpointer(
    files.path_of(workdir) / 'checkpoints',
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
  path = rundir.local(workdir)
  with stop_lib.Stop() as stop:
    # A file that is missing is no surprise at the end,
    asked = tasks(resolved['eval']['tasks'], 'eval.tasks')
    run = build_lib.build(resolved)
    checks.trained(run)
    shown = _trackers(resolved, path)
    if asked:  # ... nor is a model that cannot be asked.
      config_lib.named('eval.tasks', lambda: suit(asked, language_model(run, {}, {})))
    processes.require()
    mesh = build_lib.mesh(resolved)
    mesh_checks.devices(run, mesh)
    with run.choices(), contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
      opened, feed = _open(run, path, mesh, force=allow_config_change)
      try:
        return _train(run, opened, feed, choice, stop, started, shown)
      except exits.DiskError as e:  # also of the save under way while the run ended
        raise exits.Ended(exits.DISK, str(e)) from e
      finally:
        opened.close()


def _open(run: build_lib.Run, workdir: Any, mesh, *, force: bool):
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
  fresh = lambda: not (workdir / 'checkpoints').is_dir()
  if processes.from_primary(fresh):
    restore.check_sources(run)
  rundir.make(workdir)
  _shared(workdir)
  feed = processes.primary_first(lambda: feed_lib.Feed(run, workdir, mesh))
  processes.agree('data', feed.facts)
  # ... and data that cannot be read claims no directory.
  return open_dir(write=jax.process_index() == 0), feed


def _shared(workdir: Any) -> None:
  """Raises ValueError on all processes where one does not find what process 0 writes into the run
  directory: checkpoints would be in pieces on several disks.
  """
  if jax.process_count() == 1:
    return

  def written():
    mark = workdir / f'.seen-{secrets.token_hex(8)}'
    files.write(mark, '')
    return mark.name

  def seen():
    until = time.monotonic() + SEEN
    while not mark.exists():
      if time.monotonic() > until:
        return f'no, {workdir} there is another directory'
      time.sleep(0.2)
    return 'yes'

  mark = workdir / processes.from_primary(written)
  try:
    processes.agree('place', lambda: {'whether --workdir holds what process 0 has written': seen()})
  finally:
    if jax.process_index() == 0:
      mark.unlink(missing_ok=True)


def _train(run, path: rundir.RunDir, feed, choice, stop, started: float, shown) -> int:
  c, active = run.config, jax.process_index() == 0
  if not active:
    progress.quiet()
  checkpoints = checkpointer(c, path.path)
  restorer = restore.Restorer(run, checkpoints, feed, path.path)
  try:
    state = restorer.first(choice)
  except ValueError:  # another run's variables that do not fit
    path.disown()
    raise
  path.adopt()
  start, n = int(state.step), build_lib.counts(run)['total']
  devices = len(state.step.sharding.device_set)
  progress.say(
    f'{n:,} parameters, {build_lib.state_bytes(run)["total"]:.3g} bytes of optimizer state each, '
    f'{c["steps"]:,} steps of {c["batch_tokens"]:,} tokens on '
    f'{devices} {jax.devices()[0].device_kind} device(s); {feed.describe()}; run '
    f'directory {path.path}'
  )
  if devices < jax.device_count():
    progress.say(
      f'{jax.device_count() - devices} more are idle; --config.mesh.data=-1 computes on all'
    )
  if start:
    progress.say(f'resumed at step {start}')
  sample = sampler(run)
  undone = _undone(run, path.path, feed, sample) if start >= c['steps'] else {}
  if start >= c['steps'] and (start > c['steps'] or not any(undone.values())):
    progress.say(f'this run is complete: it has {start} steps, config.steps={c["steps"]}')
    checkpoints.close()
    return 0
  try:
    with (
      Tracker(
        path.path,
        resume_step=start if path.resumed else None,
        tensorboard=c['tensorboard'],
        trackers=shown,
        config=c,
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
      with stop.held(), processes.told():  # at once: saves under way may wait for each other
        state = trainer.train(state, stop, undone)
      if stop.signal is not None:
        return exits.RETRY
      parts = tasks(c['eval']['tasks'], 'eval.tasks')
      parts = {k: v for k, v in parts.items() if not undone or k in undone['tasks']}
      score(run, state.params, state.vars, parts, tracker, int(state.step))
  finally:
    if c['report'] and active:
      _report(path.path)
  if sample is not None and c['sample']['tokens']:
    progress.say('sample:\n' + progress.plain(sample(state.params, state.vars, int(state.step))))
  progress.say(f'done: {path.path / "report.html"}' if c['report'] else f'done: {path.path}')
  return 0


def _trackers(resolved: dict[str, Any], path: Any) -> dict[str, Any]:
  """Those of `config.trackers` by name, on process 0, which alone logs."""
  return channels.parts(resolved['trackers'], path) if jax.process_index() == 0 else {}


def _undone(run, path: Any, feed, sample) -> dict[str, Any]:
  """What a stop at the last step, or after it, kept from being done, by the metrics: whether the
  evaluation and the sample, and the names of tasks.
  """
  c = run.config
  read = lambda: [m for m in read_metrics(path) if m['step'] == c['steps']]
  lines = processes.from_primary(read)
  done = {m['kind'] for m in lines}
  scored = {m.get('task') for m in lines if m['kind'] == 'task'}
  return dict(
    eval=feed.has_valid and 'eval' not in done,
    sample=sample is not None and bool(c['sample']['tokens']) and 'sample' not in done,
    tasks=[k for k in tasks(c['eval']['tasks'], 'eval.tasks') if k not in scored],
  )


def _report(path: Any):
  from lmjax import report

  try:
    report.write_report(path)
  except (OSError, ValueError) as e:  # what the run learnt is in its metrics
    why = getattr(e, 'strerror', None) or e
    progress.say(f'{path / "report.html"} cannot be written: {why}')


def language_model(run: build_lib.Run, params, vars):
  """The model as evals see it. Only a token that stood before text in training may stand there now.

  That is bos with `data.bos`; without it eos, where rows run across documents; else nothing does,
  and the first token of a text is not scored.
  """
  from lmjax import lm

  d, tok, asked = run.config['data'], run.tokenizer, prompts.of(run)
  params, vars = run.network(params, vars)
  prefix = tok.bos if d['bos'] else tok.eos if d['eos'] and not d['mask_documents'] else None
  return lm.LM(
    run.architecture,
    {'params': params, **vars},
    tok,
    length=run.length,
    prefix=prefix,
    bos=d['bos'] and prefix is not None,
    task=asked.task,
    name=asked.name,
  )


def evaluate(workdir: str, names: str, *, allow_code: bool = False) -> int:
  """--eval: scores the best checkpoint, prints a table, and adds the scores to metrics.jsonl and to
  the trackers of the run.
  """
  compilation_cache()
  path = rundir.local(workdir)
  run, params, vars, step = restore.load(path, allow_code=allow_code)
  parts = tasks(names)
  shown = channels.usable(run.config['trackers'], path)
  with (
    run.choices(),
    Tracker(path, tensorboard=False, trackers=shown, config=run.config) as tracker,
  ):
    score(run, params, vars, parts, tracker, step)
  _report(path)
  return 0


def tasks(names: str, key: str = '') -> dict[str, Any]:
  """Evals given as 'a,b' or as a chain of specs, by name. Raises ValueError, that names the key of
  the config, where one lacks its files.
  """
  from lmjax import registry

  if not names:
    return {}
  spec = ' | '.join(f'{n.strip()}()' for n in names.split(',')) if '(' not in names else names
  make = lambda: {k: part() for k, part in registry.make_chain('eval', spec).items()}
  return config_lib.named(key, make, value=names) if key else make()


def suit(parts: dict[str, Any], model):
  """Raises kinds.Unsupported, naming the eval, where one cannot score this model."""
  for name, part in parts.items():
    try:
      getattr(part, 'suits', lambda lm: None)(model)
    except kinds.Unsupported as e:
      raise kinds.Unsupported(f'{name}: {e}') from e


def score(run, params, vars, parts: dict[str, Any], tracker, step: int):
  """Runs evals and logs what they find."""
  if not parts:
    return
  model = language_model(run, params, vars)
  suit(parts, model)
  for name, part in parts.items():
    for s in part.run(model):
      error = '' if s.stderr is None else f' ± {_digits(s.stderr)}'
      progress.say(f'{name}: {s.name} {_digits(s.value)}{error}')
      tracker.log(
        'task', step, {'task': name, 'name': s.name, 'value': s.value, 'stderr': s.stderr}
      )


def _digits(x: float) -> str:
  """Four decimals, or three digits of what they would not show."""
  return f'{x:.4f}' if x == 0 or not abs(x) < 1e-3 else f'{x:.2e}'


def sampler(run: build_lib.Run):
  """(params, vars, step) -> text, or None where the model cannot be sampled from token by token."""
  if not all(mixer.fact('cache') for _, mixer in run.model.mixers()):
    return None
  if run.config['sample']['tokens'] and not _readable(run):
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


def _readable(run: build_lib.Run) -> bool:
  """Whether the model can read the run's prompt; says why not."""
  from lmjax import generate

  try:
    generate.trial(run, run.config['sample']['prompt'])
  except ValueError as e:
    progress.say(f'nothing is sampled along the way: {e}')
    return False
  return True
