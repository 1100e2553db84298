"""Experiments from their folders, and what is refused of them before anything runs."""

import fnmatch
import functools
import importlib.util
import pathlib
import sys
from typing import Any, Callable, Mapping

from lmjax import config as config_lib
from lmjax import registry
from lmjax.experiment import claims
from lmjax.experiment import code
from lmjax.experiment.declare import Arm, Experiment, ExperimentError, FILE, Scale

RESERVED = ('seed', 'steps')  # the runner's own
BEFORE = '{before}'  # in a change: the run directory that a trial begins from
STAGES = 'before'  # the field in which arms may have unequal numbers of runs
LAST = 0.1  # of the peak: what a schedule that has decayed ends at, at most


def load(folder: Any) -> Experiment:
  """The experiment of a folder. Raises ExperimentError where it has none or it is not sound."""
  path = pathlib.Path(folder) / FILE
  if not path.is_file():
    raise ExperimentError(f'{folder}: no {FILE} there')
  spec = importlib.util.spec_from_file_location(f'lmjax_experiment_{path.parent.name}', path)
  module = importlib.util.module_from_spec(spec)
  sys.modules[spec.name] = module  # dataclasses look there
  try:
    spec.loader.exec_module(module)
    found = module.get_experiment()
    if not isinstance(found, Experiment):
      raise ExperimentError(
        f'{path}: get_experiment() gives a {type(found).__name__}, no Experiment'
      )
    check(found, path)
  except ExperimentError:
    raise
  except (Exception, SystemExit) as e:  # the file is its user's
    raise ExperimentError(f'{path}: {type(e).__name__}: {e}') from e
  return found


def scale_of(e: Experiment, name: str) -> Scale:
  if name not in e.scales:
    known = ', '.join(e.scales)
    raise ExperimentError(f'--scale={name}: this experiment has {known}')
  return e.scales[name]


def check(e: Experiment, where: Any) -> None:
  """Raises ExperimentError for what no config is needed to see."""

  def demand(holds: Any, text: str):
    if not holds:
      raise ExperimentError(f'{where}: {text}')

  demand(isinstance(e.base, str), f'base={e.base!r}: the name of a recipe is expected')
  demand(
    _listed(e.fields) and all(isinstance(f, str) and f.strip('*.') for f in e.fields),
    f'fields={e.fields!r}: a tuple of config keys is expected, as in ("optim", "model.*")',
  )
  demand(isinstance(e.changes, Mapping), f'changes={e.changes!r}: a dictionary is expected')
  _check_arms(e, demand)
  _check_seeds(e, demand)
  _check_measure(e, demand)
  demand(
    isinstance(e.scales, Mapping) and all(isinstance(s, Scale) for s in e.scales.values()),
    f'scales={e.scales!r}: a dictionary of Scales is expected',
  )
  demand(e.scales, 'scales={} is empty: at least one Scale is expected')
  for name, scale in e.scales.items():
    _check_scale(e, name, scale, demand)


def _whole(x: Any) -> bool:
  return isinstance(x, int) and not isinstance(x, bool)


def _listed(x: Any) -> bool:
  return isinstance(x, (list, tuple, range))


def _check_arms(e: Experiment, demand: Callable) -> None:
  demand(
    isinstance(e.baseline, Arm),
    'baseline= must be an Arm: without a tuned baseline nothing can be said',
  )
  demand(
    _listed(e.treatments) and all(isinstance(a, Arm) for a in e.treatments),
    f'treatments={e.treatments!r}: a tuple of Arms is expected',
  )
  demand(e.treatments, 'treatments=() is empty: at least one Arm is expected')
  for arm in e.arms:
    _check_arm(arm, demand)
  names = [a.name for a in e.arms]
  for name in names:
    demand(names.count(name) == 1, f'two arms are named {name!r}')
  counts = {a.name: len(a.points()) for a in e.arms}
  text = ', '.join(f'{k} {n}' for k, n in counts.items())
  demand(
    len(set(counts.values())) == 1,
    f'the arms are tuned over unequal numbers of points ({text}); equal ones are expected',
  )


def _check_seeds(e: Experiment, demand: Callable) -> None:
  demand(
    _listed(e.seeds) and all(map(_whole, (*e.seeds, e.tuning_seed))),
    f'seeds={e.seeds!r} and tuning_seed={e.tuning_seed!r}: whole numbers are expected',
  )
  demand(e.seeds, 'seeds=() is empty: at least two are expected for a verdict')
  demand(
    len({*e.seeds, e.tuning_seed}) == len(e.seeds) + 1,
    f'seeds={tuple(e.seeds)} and tuning_seed={e.tuning_seed}: different ones are expected',
  )


def _check_measure(e: Experiment, demand: Callable) -> None:
  demand(callable(e.measure), f'measure={e.measure!r}: a function of the metrics is expected')
  known = e.tuned_on in ('loss', 'measure')
  demand(known, f"tuned_on={e.tuned_on!r}: 'loss' or 'measure' is expected")
  try:
    code.of_function(e.measure)
  except (OSError, SyntaxError, TypeError):
    demand(False, f'measure={e.measure!r}: a function made by `def` in a file is expected')


def _check_arm(arm: Arm, demand: Callable) -> None:
  known = arm.claim is None or not isinstance(arm.claim, type) and hasattr(arm.claim, 'verdict')
  demand(known, f'arm {arm.name}: claim={arm.claim!r}: a claim is expected, as in Better(0.01)')
  for key in ('changes', 'grid'):
    value = getattr(arm, key)
    demand(isinstance(value, Mapping), f'arm {arm.name}: {key}={value!r}: a dictionary is expected')
  for key, values in arm.grid.items():
    some = _listed(values) and len(values)
    demand(some, f'arm {arm.name}: grid[{key!r}]={values!r} is empty; values to try are expected')
    for value in values:
      plain = value is None or isinstance(value, (bool, int, float, str))
      demand(plain, f'arm {arm.name}: grid[{key!r}] has {value!r}: a plain value is expected')
  right = _listed(arm.before) and all(isinstance(run, Mapping) for run in arm.before)
  demand(right, f'arm {arm.name}: before={arm.before!r}: a tuple of dictionaries is expected')
  for i, run in enumerate(arm.before):
    at, steps = f'arm {arm.name}: before[{i}]', run.get('steps')
    demand(_whole(steps) and steps > 0, f'{at}: steps={steps!r}: a number of steps is expected')
    demand('seed' not in run, f"{at}: 'seed' is the trial's; see seeds=")
  for key, value in (arm.before[0] if arm.before else arm.changes).items():
    demand(BEFORE not in str(value), f'arm {arm.name}: {key}={value!r}: no run is before this one')
  for key in [*arm.changes, *arm.grid]:
    owned = f"arm {arm.name}: {key!r} is not an arm's to change; see seeds= and budgets="
    demand(key not in RESERVED, owned)


def _check_scale(e: Experiment, name: Any, s: Scale, demand: Callable) -> None:
  at = f'scales[{name!r}]'
  plain = isinstance(name, str) and name.replace('_', '').replace('-', '').isalnum()
  demand(plain, f'{at}: a name of letters, digits, - and _ is expected')
  for key, least in (('budgets', 1), ('baseline_budgets', 0)):
    given = getattr(s, key)
    right = _listed(given) and len(given) >= least
    right = right and all(_whole(n) and n > 0 for n in given)
    demand(right, f'{at}.{key}={given!r}: numbers of steps are expected')
  demand(isinstance(s.changes, Mapping), f'{at}.changes={s.changes!r}: a dictionary is expected')
  right = isinstance(s.hours, (int, float)) and s.hours > 0
  demand(right, f'{at}.hours={s.hours!r}: a positive number is expected')
  demand(_whole(s.cores) and s.cores > 0, f'{at}.cores={s.cores!r}: a positive number is expected')
  demand(_whole(s.gpus) and s.gpus >= 0, f'{at}.gpus={s.gpus!r}: a whole number is expected')
  faster = [a.name for a in e.treatments if isinstance(a.claim, claims.Faster)]
  demand(
    not faster or len({*s.budgets, *s.baseline_budgets}) > 1,
    f"{at}: arm {', '.join(faster)} claims a speed-up, which is read off the baseline's curve; at "
    'least two budgets are expected, or baseline_budgets',
  )


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


def check_before(e: Experiment, configs: Mapping[str, list[dict]]) -> None:
  """Raises ExperimentError where the runs before those of an arm, by its name, are not as many as
  the baseline's or differ from them in other keys than the declared ones.
  """
  baseline = configs[e.baseline.name]
  for arm in e.arms:
    own = configs[arm.name]
    if len(own) == len(baseline):
      for mine, theirs in zip(own, baseline):
        check_fields(e, arm, mine, theirs)
    elif STAGES not in e.fields:
      raise ExperimentError(
        f'arm {arm.name}: before= has {len(own)} runs and the baseline {len(baseline)}; declare '
        f'{STAGES!r} in fields={tuple(e.fields)}, or give both as many'
      )


def check_decay(arm: Arm, config: dict) -> None:
  """Raises ExperimentError for a schedule that does not fall to a tenth of its peak inside its
  budget, unless the optimizer owns its rate.
  """
  parts = registry.make_chain('optim', config['optim'], facts=None)
  if any(p.fact('owns_lr') for _, p in parts.items()):
    return
  extendable, peak, last = _factors(config['schedule'], config['steps'])
  if extendable or not last <= 1.05 * LAST * peak:
    raise ExperimentError(
      f'arm {arm.name}: config.schedule={config["schedule"]!r} does not decay inside its budget: '
      f'its last factor is {last:.2g}, its largest {peak:.2g}; one that ends at a tenth of it or '
      'below is expected, since losses are compared at the end of runs'
    )


@functools.cache
def _factors(spec: str, steps: int) -> tuple[bool, float, float]:
  """(whether a schedule is extendable, its largest factor, its last one)."""
  schedule = registry.make('schedule', spec, steps=steps)
  factor = schedule()
  peak = max(float(factor(steps * i // 32)) for i in range(32))  # to within a few percent
  return schedule.fact('extendable'), peak, float(factor(steps))


def check_data(arm: Arm, config: dict) -> None:
  """Raises ExperimentError where there is no validation loss to tune by."""
  if not config['data']['valid']:
    raise ExperimentError(
      f"arm {arm.name}: config.data.valid='': held-out data are expected, since arms are tuned by "
      'the loss on them'
    )
