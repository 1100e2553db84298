"""Arms x points x seeds x budgets -> trials, each a config of `lmjax.main`."""

import copy
import dataclasses
import functools
import hashlib
import json
from typing import Any, Iterable

from lmjax import config as config_lib
from lmjax.experiment import code
from lmjax.experiment import checks
from lmjax.experiment import declare

# What changes neither the losses nor what is measured of them.
OUTSIDE = tuple(
  k for k in config_lib.OUTSIDE_FINGERPRINT if k not in ('eval.*', 'data.valid', 'log_every')
)


@dataclasses.dataclass(frozen=True)
class Trial:
  """One run. `identity` is the fingerprint of all that its result depends on in its config; `code`
  that of the parts it uses. Trials of one identity and code have one result, in whatever experiment
  they stand.
  """

  arm: str
  point: dict[str, Any]
  seed: int
  steps: int
  base: str
  changes: tuple[tuple[str, Any], ...]
  identity: str
  code: str
  cores: int = 1
  gpus: int = 0
  before: 'Trial | None' = None  # the run that this one begins from

  @property
  def name(self) -> str:
    point = ' '.join(f'{k}={v!r}' for k, v in self.point.items())
    return f'{self.arm}, {self.steps} steps, seed {self.seed}' + (f', {point}' if point else '')

  def chain(self) -> list['Trial']:
    """The runs that this one rests on, the first one first, and itself."""
    return [*(self.before.chain() if self.before else ()), self]

  def words(self, workdir: Any, before: Any = '') -> list[str]:
    """Arguments of `python -m lmjax.main`; `before` is the run directory to begin from."""
    settings = [f'--config.{k}={text(v)}' for k, v in self.changes]
    settings = [w.replace(checks.BEFORE, str(before)) for w in settings]
    if not any(k.startswith('watchdog') for k, _ in self.changes):
      settings.append('--config.watchdog.exit=true')  # what hangs is started again
    return [f'--config={self.base}', f'--workdir={workdir}', *settings]


def text(value: Any) -> str:
  return value if isinstance(value, str) else json.dumps(value)


def _words(changes: Iterable[tuple[str, Any]]) -> tuple[tuple[str, str], ...]:
  return tuple((k, text(v)) for k, v in changes)


def resolve(base: str, changes: Iterable[tuple[str, Any]]) -> dict[str, Any]:
  """The resolved config; a copy, since configs are read often and made slowly."""
  return copy.deepcopy(_resolved(base, _words(changes)))


def resolve_arm(e: declare.Experiment, arm: declare.Arm, changes: dict) -> dict[str, Any]:
  """To be read only."""
  try:
    return _resolved(e.base, _words(changes.items()))
  except ValueError as error:
    raise declare.ExperimentError(f'arm {arm.name}: {error}') from None


@functools.lru_cache(maxsize=10_000)
def _resolved(base: str, words: tuple[tuple[str, str], ...]) -> dict[str, Any]:
  return config_lib.resolve(config_lib.load(base, list(words)))


def identity(resolved: dict) -> str:
  """16 hex digits over all of a config that its result depends on."""
  return config_lib.digest(resolved, OUTSIDE)


@functools.lru_cache(maxsize=10_000)
def _prints(base: str, words: tuple[tuple[str, str], ...]) -> tuple[str, str]:
  """(identity, code) of a config, which summaries ask for again and again."""
  resolved = _resolved(base, words)
  return identity(resolved), code.fingerprint(resolved)


def prints(base: str, changes, before: Trial | None) -> tuple[str, str]:
  """(identity, code) of a trial and of those that it rests on."""
  own = _prints(base, _words(changes))
  if before is None:
    return own
  below = prints(before.base, before.changes, before.before)
  return tuple(hashlib.sha256(' '.join(p).encode()).hexdigest()[:16] for p in zip(below, own))


def forget() -> None:
  """Code is looked at again."""
  code.forget()
  _prints.cache_clear()


def settings(
  e: declare.Experiment, scale: str, arm: declare.Arm, point: dict, seed: int, steps: int
) -> dict[str, Any]:
  """What a trial changes of the recipe; what is nearer to the trial wins."""
  begin = dict(init_from=checks.BEFORE) if arm.before else {}
  near = {**e.changes, **e.scales[scale].changes, **begin, **arm.changes, **point}
  return near | dict(seed=seed, steps=steps)


def stages(e: declare.Experiment, scale: str, arm: declare.Arm, seed: int) -> list[dict[str, Any]]:
  """What the runs before change of the recipe."""
  far = {**e.changes, **e.scales[scale].changes}
  begins = [{}] + [dict(init_from=checks.BEFORE)] * (len(arm.before) - 1)
  return [far | begin | own | dict(seed=seed) for begin, own in zip(begins, arm.before)]


def trial(
  e: declare.Experiment, scale: str, arm: declare.Arm, point, seed: int, steps: int
) -> Trial:
  """One trial, its config resolved; ExperimentError where it could not be compared."""
  before = None
  for n, changes in enumerate(stages(e, scale, arm, seed)):
    before = _made(e, scale, f'{arm.name}, run {n + 1} before', {}, changes, before)
  changes = settings(e, scale, arm, point, seed, steps)
  resolved = resolve_arm(e, arm, changes)
  checks.check_decay(arm, resolved)
  checks.check_data(arm, resolved)
  return _made(e, scale, arm.name, dict(point), changes, before)


def _made(e, scale: str, name: str, point: dict, changes: dict, before: Trial | None) -> Trial:
  s, at, own = e.scales[scale], (changes['seed'], changes['steps']), tuple(changes.items())
  return Trial(name, point, *at, e.base, own, *prints(e.base, own, before), s.cores, s.gpus, before)


def _stage_configs(e: declare.Experiment, scale: str, arm: declare.Arm) -> list[dict[str, Any]]:
  return [resolve_arm(e, arm, c) for c in stages(e, scale, arm, e.tuning_seed)]


def tuning(e: declare.Experiment, scale: str) -> list[Trial]:
  """Every point of every arm at every budget, on the tuning seed. Raises ExperimentError where an
  arm leaves its fields, or two points of its grid are the same.
  """
  at = e.tuning_seed, e.scales[scale].budgets[0]
  config = lambda arm, point: resolve_arm(e, arm, settings(e, scale, arm, point, *at))
  baseline = config(e.baseline, e.baseline.points()[0])
  checks.check_before(e, {a.name: _stage_configs(e, scale, a) for a in e.arms})
  for arm in e.arms:
    seen: dict[str, dict] = {}
    for point in arm.points():
      resolved = config(arm, point)
      checks.check_fields(e, arm, resolved, baseline)
      twin = seen.setdefault(identity(resolved), point)
      if twin is not point:
        raise declare.ExperimentError(
          f'arm {arm.name}: the points {twin} and {point} of its grid are one config; different '
          'ones are expected, since arms are tuned over equal numbers'
        )
  return [
    trial(e, scale, arm, point, e.tuning_seed, steps)
    for arm in e.arms
    for steps in e.budgets(arm, scale)
    for point in arm.points()
  ]
