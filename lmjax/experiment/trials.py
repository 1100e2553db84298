"""Arms x points x seeds x budgets -> trials, each a config of `lmjax.main`."""

import copy
import dataclasses
import functools
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

  @property
  def name(self) -> str:
    point = ' '.join(f'{k}={v!r}' for k, v in self.point.items())
    return f'{self.arm}, {self.steps} steps, seed {self.seed}' + (f', {point}' if point else '')

  def words(self, workdir: Any) -> list[str]:
    """Arguments of `python -m lmjax.main`."""
    settings = [f'--config.{k}={text(v)}' for k, v in self.changes]
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


def forget() -> None:
  """Code is looked at again."""
  code.forget()
  _prints.cache_clear()


def settings(
  e: declare.Experiment, scale: str, arm: declare.Arm, point: dict, seed: int, steps: int
) -> dict[str, Any]:
  """What a trial changes of the recipe; what is nearer to the trial wins."""
  near = {**e.changes, **e.scales[scale].changes, **arm.changes, **point}
  return near | dict(seed=seed, steps=steps)


def trial(
  e: declare.Experiment, scale: str, arm: declare.Arm, point, seed: int, steps: int
) -> Trial:
  """One trial, its config resolved; ExperimentError where it could not be compared."""
  s, changes = e.scales[scale], settings(e, scale, arm, point, seed, steps)
  resolved = resolve_arm(e, arm, changes)
  checks.check_decay(arm, resolved)
  checks.check_data(arm, resolved)
  return Trial(
    arm.name,
    dict(point),
    seed,
    steps,
    e.base,
    tuple(changes.items()),
    *_prints(e.base, _words(changes.items())),
    s.cores,
    s.gpus,
  )


def tuning(e: declare.Experiment, scale: str) -> list[Trial]:
  """Every point of every arm at every budget, on the tuning seed. Raises ExperimentError where an
  arm leaves its fields, or two points of its grid are the same.
  """
  at = e.tuning_seed, e.scales[scale].budgets[0]
  config = lambda arm, point: resolve_arm(e, arm, settings(e, scale, arm, point, *at))
  baseline = config(e.baseline, e.baseline.points()[0])
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
