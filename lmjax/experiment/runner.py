"""run: tunes every arm, then runs the seeds of its best point, and keeps what each trial gave.

What `results.json` has of a trial, with identity, code and measure unchanged, is not run again, on
this machine or another. It is written after every trial, so that a killed runner loses none, and
read again before, so that several runners may share a folder.
"""

import functools
import math
import pathlib
import signal
from typing import Any, Sequence

from lmjax import flops as flops_lib
from lmjax import progress
from lmjax.experiment import checks
from lmjax.experiment import declare
from lmjax.experiment import execute
from lmjax.experiment import measures
from lmjax.experiment import results as results_lib
from lmjax.experiment import summary
from lmjax.experiment import trials as trials_lib
from lmjax.experiment.trials import Trial

FLOPS_A_CORE = 4e10  # of small matrices on one CPU core, where nothing was measured yet
START = 12.0  # core-seconds of imports and compilation, likewise


def unfinished(trials: Sequence[Trial], known: dict) -> list[Trial]:
  """Trials without a result, one of each identity."""
  out = {}
  for t in trials:
    r = known.get((t.identity, t.code))
    if r is None or r['status'] not in execute.ENDED:
      out.setdefault((t.identity, t.code), t)
  return list(out.values())


def ahead(trials: Sequence[Trial]) -> list[list[Trial]]:
  """The runs that these rest on, each once: first those that rest on none."""
  levels: list[dict[tuple[str, str], Trial]] = []
  for t in trials:
    for n, run in enumerate(t.chain()[:-1]):
      levels += [{}] * (n == len(levels))
      levels[n].setdefault((run.identity, run.code), run)
  return [list(level.values()) for level in levels]


def estimate(e: declare.Experiment, scale: str, known: dict) -> tuple[int, int, float]:
  """(trials in all, trials to run, core-hours of these, accelerator-hours where trials ask for
  some): by what trials of the same arm took, else by FLOPs; NaN for accelerators never timed.
  Trials of one config are one.
  """
  made = summary.everything(e, scale, known, untuned=True)
  todo = unfinished(made, known)
  there = results_lib.below(known.values())
  first = [t for level in ahead(todo) for t in level if f'{t.identity} {t.code}' not in there]
  total = sum(_seconds(e.scales[scale], t, known) for t in first + todo)
  return len({(t.identity, t.code) for t in made}), len(todo), total / 3600


def _seconds(s: declare.Scale, t: Trial, known: dict) -> float:
  same = [r for r in known.values() if r['status'] == execute.DONE and r['arm'] == t.arm]
  if same:
    r = min(same, key=lambda r: abs(r['steps'] - t.steps))
    return START + max(0.0, s.spent(r) - START) * t.steps / r['steps']
  if s.gpus:
    return math.nan
  resolved = trials_lib.resolve(t.base, t.changes)
  tokens = resolved['batch_tokens'] * resolved['steps']
  return START + _flops(t.base, t.changes) * tokens / FLOPS_A_CORE


def _flops(base: str, changes) -> float:
  """FLOPs a token of a step, which the optimizer does not change: built once for all arms."""
  model = tuple((k, v) for k, v in changes if k.startswith(('model', 'data.', 'objective')))
  return _built(base, model)


@functools.cache
def _built(base: str, changes) -> float:
  from lmjax import build

  return flops_lib.per_token(build.build(trials_lib.resolve(base, changes))).step_full


def run(folder: Any, scale: str, runs: Any, engine, say=print, *, dry: bool = False) -> int:
  """Runs what is missing; the exit status is 0, 1 where trials failed, 75 where it was stopped."""
  e = checks.load(folder)
  s = checks.scale_of(e, scale)
  known = results_lib.known(results_lib.read(folder), scale, e.measured)
  n, left, hours = estimate(e, scale, known)
  points = len(e.baseline.points())
  say(
    f'{folder}, scale {scale}: {len(e.arms)} arms, each tuned over {points} points at each budget '
    f'({", ".join(map(str, s.budgets))} steps) on seed {e.tuning_seed}, then seeds '
    f'{", ".join(map(str, e.seeds))}'
  )
  text = 'not known before some ran' if math.isnan(hours) else f'about {hours:.2f}'
  say(
    f'{n} trials, {left} to run; {s.unit}: {text}, beside {past(s, known):.2f} spent (declared: '
    f'{s.hours:g})'
  )
  check_hours(folder, e, scale, known, hours)
  if dry:
    return 0
  with results_lib.changed(folder):
    pass  # what cannot be written is known before anything runs
  pathlib.Path(runs).mkdir(parents=True, exist_ok=True)
  told = _listen(engine, say)
  failed = 0
  for stage in ('tuning', 'seeds'):
    known = results_lib.known(results_lib.read(folder), scale, e.measured)
    if stage == 'seeds':  # the tuning may have told what trials cost
      check_hours(folder, e, scale, known, estimate(e, scale, known)[2])
    made = trials_lib.tuning(e, scale) if stage == 'tuning' else summary.everything(e, scale, known)
    todo = unfinished(made, known)
    twins: dict[tuple[str, str], list[Trial]] = {}
    for t in made:
      twins.setdefault((t.identity, t.code), []).append(t)
    for level in ahead(todo):
      ran = engine.run(level, runs, measures.final_loss)
      ran = progress.track(ran, f'{stage}, runs before', len(level), 'trials')
      for i, (t, outcome) in enumerate(ran, 1):
        say(f'{stage}, run before {i}/{len(level)}: {t.name}: {told_of(outcome)}')
    ran = progress.track(engine.run(todo, runs, e.measure), stage, len(todo), 'trials')
    for i, (t, outcome) in enumerate(ran, 1):
      if outcome['status'] == execute.STOPPED:
        continue  # it goes on later
      # One run serves every arm that asks for the same one.
      new = [results_lib.record(x, e.measured, outcome) for x in twins[t.identity, t.code]]
      with results_lib.changed(folder) as results:
        results_lib.merge(results, scale, new)
      failed += outcome['status'] not in execute.ENDED
      say(f'{stage} {i}/{len(todo)}: {t.name}: {told_of(outcome)}')
    if told:
      say('stopped; the same command goes on from here')
      return 75
  return 1 if failed else 0


def past(s: declare.Scale, known: dict) -> float:
  """Hours spent so far."""
  ended = [r for r in known.values() if r['status'] in execute.ENDED]
  return sum(s.spent(r) for r in [*ended, *results_lib.below(known.values()).values()]) / 3600


def check_hours(folder: Any, e: declare.Experiment, scale: str, known: dict, hours: float) -> None:
  """Raises ExperimentError where the whole, `hours` to go, takes longer than declared."""
  s = e.scales[scale]
  total = past(s, known) + (0.0 if math.isnan(hours) else hours)
  if total > s.hours:
    raise declare.ExperimentError(
      f'{folder}: about {total:.2f} {s.unit} in all are more than scales[{scale!r}].hours='
      f'{s.hours:g}; raise it, or take smaller budgets, grids or models'
    )


def told_of(outcome: dict[str, Any]) -> str:
  """A record in a line."""
  value = '' if outcome.get('value') is None else f' {outcome["value"]:.4f}'
  return f'{outcome["status"]}{value} {outcome["message"]}'.rstrip()


def _listen(engine, say) -> list[int]:
  """SIGINT and SIGTERM end the trials, which save; returns a list that then is not empty."""
  told: list[int] = []

  def stop(number, frame):
    if told:
      raise KeyboardInterrupt
    told.append(number)
    say('stopping: running trials save and end')
    engine.stop()

  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, stop)
  return told
