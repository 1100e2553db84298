"""From records to numbers: the tuned point of each arm, its seeds, and the verdict.

Nothing here runs anything; the same records give the same summary on every machine.
"""

import dataclasses
import math
from typing import Any

from lmjax.experiment import claims
from lmjax.experiment import declare
from lmjax.experiment import execute
from lmjax.experiment import results as results_lib
from lmjax.experiment import statistics
from lmjax.experiment import trials
from lmjax.experiment.claims import Interval
from lmjax.experiment.statistics import Sample

INCOMPLETE, DIVERGED = 'incomplete', 'diverged'


@dataclasses.dataclass
class Cell:
  """One arm at one budget. best: the tuned point, or None while tuning is unfinished.

  edge: keys whose best value is the smallest or largest tried. missing, diverged: trials, in words.
  """

  arm: declare.Arm
  steps: int
  best: dict[str, Any] | None
  edge: list[str]
  tuned: int
  sample: Sample
  records: list[dict[str, Any]]
  missing: list[str]
  diverged: list[str]

  def middle(self, key: str) -> float:
    """The median of a number over the records; NaN without any."""
    found = sorted(r[key] for r in self.records if r.get(key) is not None)
    return float(found[len(found) // 2]) if found else math.nan

  @property
  def tokens(self) -> float:
    return self.middle('tokens')


@dataclasses.dataclass
class Comparison:
  """A treatment against the baseline at one budget."""

  cell: Cell
  baseline: Cell
  gain: Interval
  p: float
  speedup: Interval
  beyond: bool

  @property
  def steps_equivalent(self) -> float:
    """Steps of the baseline that give the treatment's loss."""
    return self.speedup.value * self.cell.steps


@dataclasses.dataclass
class Summary:
  cells: list[Cell]
  comparisons: list[Comparison]
  verdicts: dict[str, str]
  stale: int

  @property
  def missing(self) -> list[str]:
    return [m for c in self.cells for m in c.missing]

  @property
  def diverged(self) -> list[str]:
    return [m for c in self.cells for m in c.diverged]

  def step_seconds(self, cell: Cell | None) -> float:
    """Seconds of a step. On CPUs, where other programs disturb clocks, CPU seconds: the difference
    between the arm's shortest and longest budget, over the steps between.
    """
    if cell is None:
      return math.nan
    own = [c for c in self.cells if c.arm is cell.arm and c.records]
    on_cpu = all((r.get('versions') or {}).get('backend') == 'cpu' for c in own for r in c.records)
    if not on_cpu or len(own) < 2:
      return cell.middle('step_time')
    a, b = own[0], own[-1]
    return (b.middle('cpu_seconds') - a.middle('cpu_seconds')) / (b.steps - a.steps)

  def cell(self, arm: str, steps: int) -> Cell:
    return next(c for c in self.cells if c.arm.name == arm and c.steps == steps)


def best_point(records: list[dict[str, Any]]) -> dict[str, Any] | None:
  """The point with the lowest final loss, whatever is compared then; one that diverged is never the
  best. None if all did.
  """
  finite = [r for r in records if r['status'] == execute.DONE and r['loss'] is not None]
  return min(finite, key=lambda r: r['loss'])['point'] if finite else None


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

  tuning = [of(point, e.tuning_seed) for point in arm.points()]
  done = [r for r in tuning if r is not None]
  if missing:
    return Cell(arm, steps, None, [], len(done), Sample(()), done, missing, [])
  best = best_point(done)
  if best is None:
    text = f'{arm.name}, {steps} steps: every point of the grid diverged'
    return Cell(arm, steps, None, [], len(done), Sample(()), done, [], [text])
  records = [r for seed in e.seeds if (r := of(best, seed)) is not None]
  good = [r for r in records if r['status'] == execute.DONE and r['value'] is not None]
  diverged = [
    f'{arm.name}, {steps} steps, seed {r["seed"]} diverged: {r["message"]}'
    for r in records
    if r not in good
  ]
  values = Sample(tuple(r['value'] for r in good))
  return Cell(arm, steps, best, edges(arm, best), len(done), values, good, missing, diverged)


def summarize(e: declare.Experiment, scale: str, results: dict) -> Summary:
  """Everything that tables, figures and the index say of one scale."""
  known = results_lib.known(results, scale)
  cells = [cell(e, scale, arm, steps, known) for arm in e.arms for steps in e.budgets(arm, scale)]
  base = {c.steps: c for c in cells if c.arm is e.baseline}
  comparisons = [compare(c, base) for c in cells if c.arm is not e.baseline and c.steps in base]
  last = max(e.scales[scale].budgets)
  at_last = [c for c in comparisons if c.cell.steps == last]
  for c, p in zip(at_last, statistics.holm([c.p for c in at_last])):
    c.p = p
  verdicts = {c.cell.arm.name: verdict(c, base) for c in at_last if c.cell.arm.claim is not None}
  stale = len(stale_records(e, scale, known)) if known else 0
  return Summary(cells, comparisons, verdicts, stale)


def stale_records(e: declare.Experiment, scale: str, known: dict) -> list[dict[str, Any]]:
  """Records that no trial of the experiment, as it stands now, would give."""
  arms, budgets = {a.name: a for a in e.arms}, {}
  out = []
  for key, r in known.items():
    arm = arms.get(r['arm'])
    if arm is None or r['steps'] not in budgets.setdefault(r['arm'], e.budgets(arm, scale)):
      out.append(r)
      continue
    try:
      t = trials.trial(e, scale, arm, r['point'], r['seed'], r['steps'])
    except ValueError:
      out.append(r)
      continue
    if (t.identity, t.code) != key:
      out.append(r)
  return out


def compare(c: Cell, base: dict[int, Cell]) -> Comparison:
  baseline = base[c.steps]
  gain, p = statistics.gain(baseline.sample, c.sample)
  curve = [(b.tokens, b.sample) for b in base.values() if b.sample.values]
  found, beyond = statistics.NO_INTERVAL, False
  if c.sample.values and curve:
    found, beyond = statistics.speedup(c.tokens, c.sample, curve)
  return Comparison(c, baseline, gain, p, found, beyond)


def verdict(c: Comparison, base: dict[int, Cell]) -> str:
  """The claim's verdict, or what keeps it from one."""
  if c.cell.missing or c.baseline.missing:
    return INCOMPLETE
  if c.cell.diverged:
    return DIVERGED
  if len(c.cell.sample.values) < 2 or len(c.baseline.sample.values) < 2:
    return INCOMPLETE
  if isinstance(c.cell.arm.claim, claims.Faster) and any(b.missing for b in base.values()):
    return INCOMPLETE
  return c.cell.arm.claim.verdict(c.gain, c.speedup)
