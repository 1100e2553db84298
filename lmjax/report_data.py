"""What the report says about a run, read from its directory: curves, headline numbers, samples,
records.

Works on any state of a run directory: empty, running, killed, damaged, with NaN in it.
"""

import dataclasses
import math
import time
from typing import Any, Mapping, Sequence

import numpy as np

from lmjax import files
from lmjax import report_curves
from lmjax import rundir
from lmjax import tracking
from lmjax.report_curves import is_number

SAMPLES = 20  # of a run
LONGEST = 4000  # characters of a sample
_QUIET_SECONDS = (
  600  # a run that logged nothing for this long, short of its last step, counts as stopped
)
_NO_SCORE = ('kind', 'step', 'time', 'tokens', 'valid_tokens', 'objective')


@dataclasses.dataclass(frozen=True)
class Share:
  """What a run may take of a page: lines of training read, numbers of curves, characters of
  samples.
  """

  lines: int
  numbers: int
  characters: int


def share(runs: int) -> Share:
  """That of each of so many runs: of 2 million lines and some 20 MB, however many there are."""
  return Share(
    lines=max(100, 2_000_000 // runs),
    numbers=max(80, 1_000_000 // runs),
    characters=max(300, 2_000_000 // runs),
  )


@dataclasses.dataclass
class Run:
  """One run, ready to be drawn. `train` and `evals` hold columns of equal length, None where a
  value is missing; `scores` the last value and standard error of every eval; `samples` are
  (step, prompt, text), oldest first. lines: all but those of training.
  """

  name: str
  path: Any  # pathlib's, or of an object store
  lines: list[dict[str, Any]]
  train: dict[str, list]
  evals: dict[str, dict[str, list]]
  scores: dict[str, tuple[float, float | None]]
  samples: list[tuple[int, str, str]]
  config: dict[str, Any]
  versions: dict[str, Any]
  commands: str
  facts: dict[str, Any]

  def of_kind(self, kind: str) -> list[dict[str, Any]]:
    return [x for x in self.lines if x['kind'] == kind]


def holds_run(path: Any) -> bool:
  """Whether a directory is that of a run."""
  return (path / 'config.json').is_file() or (path / tracking.FILE).is_file()


def load(workdir: Any, state: str | None = None, most: Share | None = None) -> Run:
  """Reads a run directory; raises ValueError when it does not exist, or cannot be read."""
  most = share(1) if most is None else most
  path = rundir.local(workdir)
  if not path.is_dir():
    raise ValueError(f'{str(workdir)!r} is not a directory; give the workdir of a run')
  try:
    found = tracking.read(path, most.lines)
  except OSError as e:
    raise ValueError(f'{path / tracking.FILE} cannot be read: {e.strerror or e}') from None
  train = [x for x in found.lines if x['kind'] == 'train']
  lines = [x for x in found.lines if x['kind'] != 'train']
  clock = report_curves.clock(train)
  drawn, hidden = report_curves.columns(train, clock, most.numbers)
  config = _json(path / 'config.json', {})
  config = config if isinstance(config, dict) else {}
  versions = _json(path / 'versions.json', [])
  newest = versions[-1] if isinstance(versions, list) and versions else {}
  commands = path / 'command.txt'
  facts = _facts(lines, train, clock, config, state)
  facts |= dict(unread=found.unread, passed=found.passed, hidden=hidden, drawn=len(drawn['step']))
  return Run(
    name=path.name,
    path=path,
    lines=lines,
    train=drawn,
    evals=_evals(lines, clock, most.numbers),
    scores=_scores(lines),
    samples=_samples(lines, most.characters),
    config=config,
    versions=newest if isinstance(newest, dict) else {},
    commands=commands.read_bytes().decode(errors='replace') if commands.is_file() else '',
    facts=facts,
  )


def _json(path: Any, default: Any) -> Any:
  try:
    return files.read_json(path)
  except ValueError:
    return default


def _evals(lines: Sequence[Mapping], clock: Mapping, numbers: int) -> dict[str, dict[str, list]]:
  groups: dict[str, list] = {}
  for x in lines:
    if x['kind'] == 'eval' and report_curves.is_scalar(x.get('loss')):
      groups.setdefault(str(x.get('name') or 'validation'), []).append(x)
  each = numbers // max(1, len(groups))
  return {k: report_curves.columns(v, clock, each, ('loss',))[0] for k, v in groups.items()}


def _scores(lines: Sequence[Mapping]) -> dict[str, tuple[float, float | None]]:
  """The last value of each number of an eval, by a name for people, with its standard error."""
  out: dict[str, tuple[float, float | None]] = {}
  for x in sorted(lines, key=lambda x: x['step']):
    error = lambda key, x=x: x[key] if is_number(x.get(key)) else None
    if x['kind'] == 'task' and is_number(x.get('value')):
      name = ': '.join(str(x[k]) for k in ('task', 'name') if x.get(k) is not None)
      out[name] = (x['value'], error('stderr'))
    if x['kind'] == 'eval':
      for k, v in x.items():
        if k not in _NO_SCORE and not k.endswith('_stderr') and is_number(v):
          out[f'{x.get("name") or "validation"}: {k}'] = (v, error(f'{k}_stderr'))
  return out


def _samples(lines: Sequence[Mapping], characters: int) -> list[tuple[int, str, str]]:
  """At most SAMPLES of a run, spread over its time, the newest among them."""
  found = sorted((x for x in lines if x['kind'] == 'sample'), key=lambda x: x['step'])
  room = max(1, min(SAMPLES, characters // LONGEST))
  places = np.linspace(len(found) - 1, 0, min(len(found), room)).round().astype(int)
  most = min(LONGEST, characters)
  cut = lambda text: text if len(text) <= most else text[:most] + ' [...]'
  pick = lambda x: (x['step'], cut(str(x.get('prompt') or '')), cut(str(x.get('text') or '')))
  return [pick(found[i]) for i in sorted(set(places))]


# ------------------------------------------------------------------ headline


def _facts(
  lines: Sequence[Mapping], train: Sequence[Mapping], clock: Mapping, config: Any, state: str | None
) -> dict[str, Any]:
  steps = max((x['step'] for x in train), default=0)
  planned = config.get('steps') if isinstance(config, dict) else None
  planned = int(planned) if is_number(planned) else None
  evals = [x for x in lines if x['kind'] == 'eval' and is_number(x.get('loss'))]
  name = next((x.get('name') for x in evals), None)
  evals = [x for x in evals if x.get('name') == name]
  odd = sum(
    1 for x in train if any(report_curves.is_scalar(v) and not math.isfinite(v) for v in x.values())
  )
  waits = [
    x['data_wait'] / x['step_time']
    for x in train
    if is_number(x.get('data_wait')) and is_number(x.get('step_time')) and x['step_time'] > 0
  ]
  speeds = [x['tokens_per_second'] for x in train if is_number(x.get('tokens_per_second'))]
  costs = [x['flops_per_token'] for x in lines if is_number(x.get('flops_per_token'))]
  newest = [*lines[-1:], *train[-1:]]
  return {
    'state': state or _state(newest, steps, planned),
    'steps': steps,
    'planned': planned,
    'tokens': float(clock['tokens'][-1]) if clock['tokens'].size else None,
    'seconds': float(clock['seconds'][-1]) if clock['seconds'].size else None,
    'flops_per_token': costs[-1] if costs else None,
    'points': len(train),
    'nonfinite': odd,
    'best': min(evals, key=lambda x: (x['loss'], -x['step']), default=None),
    'last': max(evals, key=lambda x: x['step'], default=None),
    'train_loss': next((x['loss'] for x in reversed(train) if is_number(x.get('loss'))), None),
    'tokens_per_second': float(np.median(speeds)) if speeds else None,
    'data_wait': float(np.median(waits)) if waits else None,
  }


def _state(newest: Sequence[Mapping], steps: int, planned: int | None) -> str:
  if not newest:
    return 'not started'
  if planned is not None and steps >= planned:
    return 'finished'
  last = max((x['time'] for x in newest if is_number(x.get('time'))), default=0)
  return 'running' if time.time() - last < _QUIET_SECONDS else 'stopped'
