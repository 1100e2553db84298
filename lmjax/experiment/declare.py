"""What an experiment declares, and what is refused before anything runs.

A folder `experiments/<slug>/` holds `experiment.py` with `get_experiment() -> Experiment`. Arms are
changes of one recipe: the baseline's and each treatment's configs may differ in the declared
`fields` alone. Every arm is tuned over as many points of its grid as every other, on the tuning
seed, at each budget; the best point, by final loss, is then run on `seeds`, which the tuning never
saw. A budget is a number of steps, and its schedule decays fully inside it.
"""

import dataclasses
import fnmatch
import importlib.util
import itertools
import pathlib
from typing import Any, Callable, Mapping, Sequence

from lmjax import config as config_lib
from lmjax import registry
from lmjax.experiment import claims
from lmjax.experiment import measures

FILE = 'experiment.py'
RESERVED = ('seed', 'steps')  # the runner's own


class ExperimentError(ValueError):
  """What is wrong with an experiment, in one sentence that names the folder and the field."""


@dataclasses.dataclass(frozen=True)
class Arm:
  """One side of a comparison.

  changes: config key -> value, over the recipe's and the scale's. grid: config key -> values; all
    combinations are tried. claim: what its authors say of a treatment, see `claims`.
  """

  name: str
  changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  grid: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
  claim: claims.Claim | None = None

  def points(self) -> list[dict[str, Any]]:
    """Every combination of the grid's values; one empty point without a grid."""
    return [dict(zip(self.grid, values)) for values in itertools.product(*self.grid.values())]


@dataclasses.dataclass(frozen=True)
class Scale:
  """Where and how large. budgets: steps. baseline_budgets: more of them, for the baseline alone:
  its curve, on which steps-equivalents are read.

  hours: core-hours, or accelerator-hours where gpus are asked for, that the whole may take; an
    estimate above it is refused. cores, gpus: of one trial.
  """

  budgets: Sequence[int]
  changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  baseline_budgets: Sequence[int] = ()
  hours: float = 8.0
  cores: int = 1
  gpus: int = 0


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A comparison. base: the recipe. fields: config keys (patterns) in which arms may differ.

  measure: the number that is compared, lower is better; see `measures`.
  """

  title: str
  source: str
  base: str
  fields: Sequence[str]
  baseline: Arm
  treatments: Sequence[Arm]
  scales: Mapping[str, Scale]
  changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  seeds: Sequence[int] = (1, 2, 3)
  tuning_seed: int = 0
  measure: Callable = measures.final_loss
  notes: str = ''

  @property
  def arms(self) -> list[Arm]:
    return [self.baseline, *self.treatments]

  def arm(self, name: str) -> Arm:
    return next(a for a in self.arms if a.name == name)

  def budgets(self, arm: Arm, scale: str) -> list[int]:
    s = self.scales[scale]
    own = s.baseline_budgets if arm is self.baseline else ()
    return sorted({*s.budgets, *own})


def load(folder: Any) -> Experiment:
  """The experiment of a folder. Raises ExperimentError where it has none or it is not sound."""
  path = pathlib.Path(folder) / FILE
  if not path.is_file():
    raise ExperimentError(f'{folder}: no {FILE} there')
  spec = importlib.util.spec_from_file_location(f'lmjax_experiment_{path.parent.name}', path)
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    found = module.get_experiment()
  except ExperimentError:
    raise
  except Exception as e:  # the file is its user's
    raise ExperimentError(f'{path}: {type(e).__name__}: {e}') from e
  if not isinstance(found, Experiment):
    raise ExperimentError(f'{path}: get_experiment() gives a {type(found).__name__}, no Experiment')
  check(found, path)
  return found


def check(e: Experiment, where: Any) -> None:
  """Raises ExperimentError for what no config is needed to see."""

  def refuse(text: str):
    raise ExperimentError(f'{where}: {text}')

  if not isinstance(e.baseline, Arm):
    refuse('baseline= must be an Arm: without a tuned baseline nothing can be said')
  if not e.treatments:
    refuse('treatments=() is empty: at least one Arm is expected')
  names = [a.name for a in e.arms]
  for name in names:
    if names.count(name) > 1:
      refuse(f'two arms are named {name!r}')
  for arm in e.arms:
    for key, values in arm.grid.items():
      if isinstance(values, str) or not len(values):
        refuse(f'arm {arm.name}: grid[{key!r}]={values!r} is empty; values to try are expected')
    for key in [*arm.changes, *arm.grid]:
      if key in RESERVED:
        refuse(f"arm {arm.name}: {key!r} is not an arm's to change; see seeds= and budgets=")
  counts = {a.name: len(a.points()) for a in e.arms}
  if len(set(counts.values())) > 1:
    text = ', '.join(f'{k} {n}' for k, n in counts.items())
    refuse(f'the arms are tuned over unequal numbers of points ({text}); equal ones are expected')
  if not e.seeds:
    refuse('seeds=() is empty: at least one seed is expected, three for a verdict')
  if len(set(e.seeds)) < len(e.seeds) or e.tuning_seed in e.seeds:
    refuse(f'seeds={tuple(e.seeds)} and tuning_seed={e.tuning_seed}: different ones are expected')
  if not e.scales:
    refuse('scales={} is empty: at least one Scale is expected')
  for name, scale in e.scales.items():
    budgets = [*scale.budgets, *scale.baseline_budgets]
    if not scale.budgets or min(budgets) < 1:
      refuse(f'scales[{name!r}].budgets={tuple(scale.budgets)}: numbers of steps are expected')


def scale_of(e: Experiment, name: str) -> Scale:
  if name not in e.scales:
    known = ', '.join(e.scales)
    raise ExperimentError(f'--scale={name}: this experiment has {known}')
  return e.scales[name]


def check_fields(e: Experiment, arm: Arm, config: dict, baseline: dict) -> None:
  """Raises ExperimentError where a resolved config differs from the baseline's in other keys than
  the declared ones.
  """
  a, b = config_lib.flat(config), config_lib.flat(baseline)
  for key in sorted(a.keys() | b.keys()):
    if a.get(key) != b.get(key) and not any(fnmatch.fnmatchcase(key, f) for f in e.fields):
      raise ExperimentError(
        f'arm {arm.name} changes config.{key} ({b.get(key)!r} -> {a.get(key)!r}), which is not in '
        f'fields={tuple(e.fields)}; declare it, or give both arms the same value'
      )


def check_decay(arm: Arm, config: dict) -> None:
  """Raises ExperimentError for a schedule that does not end with its budget, unless the optimizer
  owns its rate.
  """
  parts = registry.make_chain('optim', config['optim'], facts=None)
  schedule = registry.make('schedule', config['schedule'], steps=config['steps'])
  if schedule.fact('extendable') and not any(p.fact('owns_lr') for _, p in parts.items()):
    raise ExperimentError(
      f'arm {arm.name}: config.schedule={config["schedule"]!r} does not decay inside its budget; '
      'one that does is expected, since losses are compared at the end of runs'
    )
