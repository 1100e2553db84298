"""What an experiment declares.

A folder `experiments/<slug>/` holds `experiment.py` with `get_experiment() -> Experiment`. Arms are
changes of one recipe: the baseline's and each treatment's configs may differ in the declared
`fields` alone. Every arm is tuned over as many points of its grid as every other, on the tuning
seed, at each budget; the best point, by final loss or the measure (`tuned_on`), is then run on
`seeds`, which the tuning never saw. A budget is a number of steps, and its schedule decays fully
inside it.
"""

import dataclasses
import functools
import itertools
from typing import Any, Callable, Literal, Mapping, Sequence

from lmjax.experiment import claims
from lmjax.experiment import code
from lmjax.experiment import measures

FILE = 'experiment.py'


class ExperimentError(ValueError):
  """What is wrong with an experiment, in one sentence that names the folder and the field."""


@dataclasses.dataclass(frozen=True)
class Arm:
  """One side of a comparison.

  changes: config key -> value, over the recipe's and the scale's. grid: config key -> values; all
    combinations are tried. claim: what its authors say of a treatment, see `claims`.
  before: changes of earlier runs, in order, over the recipe's and the scale's; each says its own
    `steps`. Every run begins from the one before (`init_from`), the last from them all: '{before}'
    stands for the run directory, which is what `init_from` is unless it is given, as in
    'add_head(run="{before}")'. All have the trial's seed; grid and budgets are those of the last.
    Where treatments have fewer or more runs than the baseline, `before` is among the fields.
  """

  name: str
  changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  grid: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
  claim: claims.Claim | None = None
  before: Sequence[Mapping[str, Any]] = ()

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

  @property
  def unit(self) -> str:
    """What `hours` are of."""
    return 'accelerator-hours' if self.gpus else 'core-hours'

  def spent(self, record: Mapping[str, Any]) -> float:
    """Core-seconds of a record, or seconds of its accelerators."""
    return record['seconds'] * self.gpus if self.gpus else record['cpu_seconds']


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A comparison. base: the recipe. fields: config keys (patterns) in which arms may differ.

  measure: the number that is compared, lower is better; see `measures`.
  tuned_on: what picks the best point, 'loss' or 'measure': the latter where the loss of an arm's
    own task may fall while what is compared gets worse.
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
  tuned_on: Literal['loss', 'measure'] = 'loss'
  notes: str = ''

  @property
  def arms(self) -> list[Arm]:
    return [self.baseline, *self.treatments]

  @functools.cached_property
  def measured(self) -> str:
    """A digest of what is measured: numbers of two measures are never compared."""
    return code.of_function(self.measure)

  def budgets(self, arm: Arm, scale: str) -> list[int]:
    s = self.scales[scale]
    own = s.baseline_budgets if arm is self.baseline else ()
    return sorted({*s.budgets, *own})
