"""From records to numbers: the tuned point of each arm, its seeds, and the verdict.

Nothing here runs anything; the same records give the same summary on every machine.
"""

import dataclasses
import math
from typing import Any

import numpy as np

from lmjax.experiment import claims
from lmjax.experiment import declare
from lmjax.experiment import execute
from lmjax.experiment import results as results_lib
from lmjax.experiment import statistics
from lmjax.experiment import trials
from lmjax.experiment.claims import Interval
from lmjax.experiment.statistics import Sample

INCOMPLETE, DIVERGED = 'incomplete', 'diverged'
BASELINE_DIVERGED = 'the baseline diverged'


@dataclasses.dataclass
class Cell:
  """One arm at one budget. best: the tuned point, or None while tuning is unfinished or where every
  point diverged.

  edge: keys whose best value is the smallest or largest tried. tuning: finished points with what
  picks the best of them, None where they diverged. missing, diverged: trials, in words.
  """

  arm: declare.Arm
  steps: int
  best: dict[str, Any] | None
  edge: list[str]
  tuning: list[tuple[dict[str, Any], float | None]]
  sample: Sample
  records: list[dict[str, Any]]
  missing: list[str]
  diverged: list[str]

  def middle(self, key: str) -> float:
    """The median of a number over the records; NaN without any."""
    found = [r[key] for r in self.records if r.get(key) is not None]
    return float(np.median(found)) if found else math.nan

  @property
  def tokens(self) -> float:
    return self.middle('tokens')


@dataclasses.dataclass
class Comparison:
  """A treatment against the baseline at one budget. limit: the tokens of the baseline's longest
  budget over the treatment's; larger speed-ups are extrapolated.
  """

  cell: Cell
  baseline: Cell
  gain: Interval
  p: float
  speedup: Interval
  beyond: bool
  limit: float

  @property
  def steps_equivalent(self) -> float:
    """Steps of the baseline that give the treatment's loss."""
    return self.speedup.value * self.cell.tokens * self.baseline.steps / self.baseline.tokens

  @property
  def certain(self) -> Interval:
    """The speed-up without what lies beyond the baseline's longest budget."""
    return Interval(*(min(x, self.limit) for x in self.speedup))


@dataclasses.dataclass
class Summary:
  cells: list[Cell]
  comparisons: list[Comparison]
  verdicts: dict[str, str]
  stale: int
  unused: int

  @property
  def missing(self) -> list[str]:
    return [m for c in self.cells for m in c.missing]

  @property
  def diverged(self) -> list[str]:
    return [m for c in self.cells for m in c.diverged]

  def step_seconds(self, cell: Cell | None) -> float:
    """Seconds of a step. On CPUs, where other programs disturb clocks, CPU seconds: the difference
    between the arm's shortest and longest budget, over the steps between; NaN for one budget.
    """
    if cell is None:
      return math.nan
    own = [c for c in self.cells if c.arm is cell.arm and c.records]
    on_cpu = all(r['versions'].get('backend') == 'cpu' for c in own for r in c.records)
    if not on_cpu:
      return cell.middle('step_time')
    if len(own) < 2:
      return math.nan
    a, b = own[0], own[-1]
    return (b.middle('cpu_seconds') - a.middle('cpu_seconds')) / (b.steps - a.steps)

  @property
  def notes(self) -> list[str]:
    """What a reader must know beside the table."""
    out = []
    if any(len(c.sample.values) == 1 and not c.missing for c in self.cells):
      out.append('One seed: no spread, hence no verdict.')
    for c in self.comparisons:
      at = f'{c.cell.arm.name}, {c.cell.steps} steps'
      if not c.cell.sample.values or not c.baseline.sample.values:
        continue
      if math.isnan(c.speedup.value) and isinstance(c.cell.arm.claim, claims.Faster):
        out.append(f"{at}: no speed-up, since the baseline's curve does not fall there.")
      if (a := devices(c.cell)) != (b := devices(c.baseline)):
        out.append(f'{at}: ran on {", ".join(a)}, the baseline on {", ".join(b)}.')
    if any(r['versions'].get('dirty') for c in self.cells for r in c.records):
      out.append(
        'Some trials ran from a work tree with changes, of code or results, not committed.'
      )
    return out

  def cell(self, arm: str, steps: int) -> Cell:
    return next(c for c in self.cells if c.arm.name == arm and c.steps == steps)


def devices(cell: Cell) -> list[str]:
  return sorted({str(r['versions'].get('device')) for r in cell.records})


def best_point(tuning: list[tuple[dict[str, Any], float | None]]) -> dict[str, Any] | None:
  """The point with the lowest number; one that diverged is never the best. None if all did."""
  finite = [(number, i) for i, (_, number) in enumerate(tuning) if number is not None]
  return tuning[min(finite)[1]][0] if finite else None


def edges(arm: declare.Arm, best: dict[str, Any]) -> list[str]:
  """The numbers of a grid whose best value is its smallest or largest."""
  out = []
  for key, values in arm.grid.items():
    numbers = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]
    if len(set(numbers)) > 1 and best[key] in (min(numbers), max(numbers)):
      out.append(key)
  return out


def cell(e: declare.Experiment, scale: str, arm: declare.Arm, steps: int, known: dict) -> Cell:
  missing: list[str] = []

  def of(point, seed):
    t = trials.trial(e, scale, arm, point, seed, steps)
    r = known.get((t.identity, t.code))
    if r is None or r['status'] not in execute.ENDED:
      missing.append(t.name if r is None else f'{t.name} ({r["status"]}: {r["message"]})')
      return None
    return r

  found = [(point, of(point, e.tuning_seed)) for point in arm.points()]
  done = [r for _, r in found if r is not None]
  key = 'value' if e.tuned_on == 'measure' else 'loss'
  number = lambda r: r[key] if r['status'] == execute.DONE else None
  tuning = [(point, number(r)) for point, r in found if r is not None]
  if missing:
    return Cell(arm, steps, None, [], tuning, Sample(()), done, missing, [])
  best = best_point(tuning)
  if best is None:
    text = f'{arm.name}, {steps} steps: every point of the grid diverged'
    return Cell(arm, steps, None, [], tuning, Sample(()), done, missing, [text])
  records = [r for seed in e.seeds if (r := of(best, seed)) is not None]
  good = [r for r in records if r['status'] == execute.DONE and r['value'] is not None]
  for r in records:
    if r['status'] == execute.DONE and r['value'] is None:
      missing.append(f'{arm.name}, {steps} steps, seed {r["seed"]} (its measure gives no number)')
  diverged = [
    f'{arm.name}, {steps} steps, seed {r["seed"]} diverged: {r["message"]}'
    for r in records
    if r['status'] == execute.DIVERGED
  ]
  values = Sample(tuple(r['value'] for r in good))
  return Cell(arm, steps, best, edges(arm, best), tuning, values, good, missing, diverged)


def summarize(e: declare.Experiment, scale: str, results: dict) -> Summary:
  """Everything that tables, figures and the index say of one scale."""
  known = results_lib.known(results, scale, e.measured)
  cells = [cell(e, scale, arm, steps, known) for arm in e.arms for steps in e.budgets(arm, scale)]
  base = {c.steps: c for c in cells if c.arm is e.baseline}
  comparisons = [compare(c, base) for c in cells if c.arm is not e.baseline and c.steps in base]
  last = max(e.scales[scale].budgets)
  at_last = [c for c in comparisons if c.cell.steps == last]
  for c, p in zip(at_last, statistics.holm([c.p for c in at_last])):
    c.p = p
  verdicts = {c.cell.arm.name: verdict(c, base) for c in at_last if c.cell.arm.claim is not None}
  stale, unused = left_out(e, scale, known)
  return Summary(cells, comparisons, verdicts, len(stale) + known.others, len(unused))


def left_out(e: declare.Experiment, scale: str, known: dict) -> tuple[list[dict], list[dict]]:
  """(stale records: no trial of the experiment, as it stands now, would give them; records of seeds
  that it no longer asks for).
  """
  arms, budgets = {a.name: a for a in e.arms}, {}
  stale, unused = [], []
  for key, r in known.items():
    arm = arms.get(r['arm'])
    if arm is None or r['steps'] not in budgets.setdefault(r['arm'], e.budgets(arm, scale)):
      stale.append((key, r))
      continue
    try:
      t = trials.trial(e, scale, arm, r['point'], r['seed'], r['steps'])
    except ValueError:
      stale.append((key, r))
      continue
    if (t.identity, t.code) != key:
      stale.append((key, r))
    elif r['seed'] not in (*e.seeds, e.tuning_seed):
      unused.append(r)
  if stale and (gone := [x for x in stale if x[1]['arm'] not in arms]):
    # Of an arm that is gone; another one may ask for the same run.
    asked = {(t.identity, t.code) for t in everything(e, scale, known)}
    stale = [x for x in stale if x not in gone or x[0] not in asked]
  return [r for _, r in stale], unused


def everything(
  e: declare.Experiment, scale: str, known: dict, untuned: bool = False
) -> list[trials.Trial]:
  """All trials that can be named today: tuning, and the seeds of what is tuned. untuned: also the
  seeds of what is not, at any point of its grid; where every point diverged there are none.
  """
  out = trials.tuning(e, scale)
  for arm in e.arms:
    for steps in e.budgets(arm, scale):
      found = cell(e, scale, arm, steps, known)
      best = arm.points()[0] if untuned and found.best is None and found.missing else found.best
      if best is not None:
        out += [trials.trial(e, scale, arm, best, seed, steps) for seed in e.seeds]
  return out


def compare(c: Cell, base: dict[int, Cell]) -> Comparison:
  baseline = base[c.steps]
  gain, p = statistics.gain(baseline.sample, c.sample)
  curve = [(b.tokens, b.sample) for b in base.values() if b.sample.values]
  found, beyond, limit = statistics.NO_INTERVAL, False, math.nan
  if c.sample.values and curve:
    found, beyond = statistics.speedup(c.tokens, c.sample, curve)
    limit = max(t for t, _ in curve) / c.tokens
  return Comparison(c, baseline, gain, p, found, beyond, limit)


def verdict(c: Comparison, base: dict[int, Cell]) -> str:
  """The claim's verdict, or what keeps it from one."""
  faster = isinstance(c.cell.arm.claim, claims.Faster)
  needed = list(base.values()) if faster else [c.baseline]
  if c.cell.diverged:
    return DIVERGED
  if any(b.diverged for b in needed):
    return BASELINE_DIVERGED
  if c.cell.missing or any(b.missing for b in needed):
    return INCOMPLETE
  if any(len(x.sample.values) < 2 for x in (c.cell, *needed)):
    return INCOMPLETE
  if faster and any(map(math.isnan, c.speedup)):
    return INCOMPLETE
  return c.cell.arm.claim.verdict(c.gain, c.certain if faster else c.speedup, c.p)
