"""What the report says about a run, read from its directory: curves, headline numbers, samples,
records.

Works on any state of a run directory: empty, running, killed, with NaN in it.
"""

import dataclasses
import math
import pathlib
import time
from typing import Any, Mapping, Sequence

import numpy as np

from lmjax import files
from lmjax import rundir
from lmjax import tracking

MAX_POINTS = 2000
_QUIET_SECONDS = (
  600  # a run that logged nothing for this long, short of its last step, counts as stopped
)
_AXES = ('step', 'tokens', 'seconds')
_NOT_CURVES = ('kind', 'step', 'time', 'tokens', 'seconds')


@dataclasses.dataclass
class Run:
  """One run, ready to be drawn. `train` and `evals` hold columns of equal length, None where a
  value is missing.
  """

  name: str
  path: pathlib.Path
  lines: list[dict[str, Any]]
  train: dict[str, list]
  evals: dict[str, dict[str, list]]
  config: dict[str, Any]
  versions: dict[str, Any]
  commands: str
  facts: dict[str, Any]

  def of_kind(self, kind: str) -> list[dict[str, Any]]:
    return [x for x in self.lines if x['kind'] == kind]


def load(workdir: Any, state: str | None = None) -> Run:
  """Reads a run directory; raises ValueError when it does not exist."""
  path = rundir.local(workdir)
  if not path.is_dir():
    raise ValueError(f'{str(workdir)!r} is not a directory; give the workdir of a run')
  lines = tracking.read_metrics(path)
  train = [x for x in lines if x['kind'] == 'train']
  clock = _clock(train)
  config = _json(path / 'config.json', {})
  versions = _json(path / 'versions.json', [])
  newest = versions[-1] if isinstance(versions, list) and versions else {}
  commands = path / 'command.txt'
  return Run(
    name=path.name,
    path=path,
    lines=lines,
    train=_columns(_thin(train), clock),
    evals=_evals(lines, clock),
    config=config if isinstance(config, dict) else {},
    versions=newest if isinstance(newest, dict) else {},
    commands=commands.read_text(errors='replace') if commands.is_file() else '',
    facts=_facts(lines, train, clock, config, state),
  )


def _json(path: pathlib.Path, default: Any) -> Any:
  try:
    return files.read_json(path)
  except ValueError:
    return default


# ------------------------------------------------------------------ curves


def _clock(train: Sequence[Mapping]) -> dict[str, np.ndarray]:
  """Steps with their tokens and seconds of training; the pause between a kill and its resume does
  not count.
  """
  rows = sorted((x for x in train if is_number(x.get('time'))), key=lambda x: x['step'])
  gaps = np.diff([x['time'] for x in rows]) if len(rows) > 1 else np.zeros(0)
  usual = float(np.median(gaps)) if gaps.size else 0.0
  gaps = np.where((gaps > 20 * usual + 60) | (gaps < 0), usual, gaps)
  tokens = [(x['step'], x['tokens']) for x in rows if is_number(x.get('tokens'))]
  return {
    'step': np.array([x['step'] for x in rows], float),
    'seconds': np.concatenate([np.zeros(min(1, len(rows))), np.cumsum(gaps)]),
    'token_step': np.array([s for s, _ in tokens], float),
    'tokens': np.array([t for _, t in tokens], float),
  }


def _thin(rows: list[dict]) -> list[dict]:
  """At most about MAX_POINTS rows: of each stretch the lowest and the highest loss, so that spikes
  stay visible.
  """
  rows = sorted(rows, key=lambda x: x['step'])
  if len(rows) <= MAX_POINTS:
    return rows
  keep = {0, len(rows) - 1}
  for part in np.array_split(np.arange(len(rows)), MAX_POINTS // 2):
    loss = [x if is_number(x := rows[i].get('loss')) else math.inf for i in part]
    keep |= {int(part[np.argmin(loss)]), int(part[np.argmax(loss)])}
  return [rows[i] for i in sorted(keep)]


def _columns(rows: Sequence[Mapping], clock: Mapping[str, np.ndarray]) -> dict[str, list]:
  steps = np.array([x['step'] for x in rows], float)
  out = {
    'step': [int(s) for s in steps],
    'tokens': _interpolate(steps, clock['token_step'], clock['tokens']),
    'seconds': _interpolate(steps, clock['step'], clock['seconds']),
  }
  names = dict.fromkeys(
    k for x in rows for k, v in x.items() if k not in _NOT_CURVES and _is_scalar(v)
  )
  for name in names:
    column = [_rounded(x.get(name)) for x in rows]
    if any(v is not None for v in column):
      out[name] = column
  return out


def _interpolate(x: np.ndarray, xs: np.ndarray, ys: np.ndarray) -> list:
  return [_rounded(v) for v in np.interp(x, xs, ys)] if xs.size else [None] * len(x)


def _evals(lines: Sequence[Mapping], clock: Mapping) -> dict[str, dict[str, list]]:
  groups: dict[str, list] = {}
  for x in lines:
    if x['kind'] == 'eval' and _is_scalar(x.get('loss')):
      groups.setdefault(str(x.get('name') or 'validation'), []).append(x)
  return {k: _columns(sorted(rows, key=lambda x: x['step']), clock) for k, rows in groups.items()}


def _is_scalar(value: Any) -> bool:
  return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
  """A finite number, booleans excluded."""
  return _is_scalar(value) and math.isfinite(value)


def _rounded(value: Any) -> float | int | None:
  """Seven digits are more than a screen shows and keep the page small."""
  return float(f'{value:.7g}') if is_number(value) else None


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
  odd = sum(1 for x in train if any(_is_scalar(v) and not math.isfinite(v) for v in x.values()))
  waits = [
    x['data_wait'] / x['step_time']
    for x in train
    if is_number(x.get('data_wait')) and is_number(x.get('step_time')) and x['step_time'] > 0
  ]
  speeds = [x['tokens_per_second'] for x in train if is_number(x.get('tokens_per_second'))]
  return {
    'state': state or _state(lines, steps, planned),
    'steps': steps,
    'planned': planned,
    'tokens': float(clock['tokens'][-1]) if clock['tokens'].size else None,
    'seconds': float(clock['seconds'][-1]) if clock['seconds'].size else None,
    'points': len(train),
    'nonfinite': odd,
    'best': min(evals, key=lambda x: (x['loss'], -x['step']), default=None),
    'last': max(evals, key=lambda x: x['step'], default=None),
    'train_loss': next((x['loss'] for x in reversed(train) if is_number(x.get('loss'))), None),
    'tokens_per_second': float(np.median(speeds)) if speeds else None,
    'data_wait': float(np.median(waits)) if waits else None,
  }


def _state(lines: Sequence[Mapping], steps: int, planned: int | None) -> str:
  if not lines:
    return 'not started'
  if planned is not None and steps >= planned:
    return 'finished'
  newest = max((x['time'] for x in lines if is_number(x.get('time'))), default=0)
  return 'running' if time.time() - newest < _QUIET_SECONDS else 'stopped'
