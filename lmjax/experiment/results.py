"""`results.json`: what finished trials gave, by scale; what `report` reads and nothing else.

A record is a trial's and stands for its identity, code and measure: it counts for the experiment as
it is declared now only where all are unchanged, so that nothing stale is ever averaged in.
"""

import contextlib
import json
import pathlib
from typing import Any, Iterable, Iterator

from lmjax import files
from lmjax.experiment import execute
from lmjax.experiment.declare import ExperimentError
from lmjax.experiment.trials import Trial

FILE, LOCK = 'results.json', '.lock'
KEYS = ('arm', 'point', 'seed', 'steps', 'identity', 'code')
VERSION = 1

_NUMBER, _MAYBE = (int, float), (int, float, type(None))
FIELDS = {
  'arm': str,
  'point': dict,
  'seed': int,
  'steps': int,
  'identity': str,
  'code': str,
  'status': str,
  'message': str,
  'value': _MAYBE,
  'loss': _MAYBE,
  'tokens': _MAYBE,
  'step_time': _MAYBE,
  'state_bytes': _MAYBE,
  'memory': _NUMBER,
  'seconds': _NUMBER,
  'cpu_seconds': _NUMBER,
  'versions': dict,
}


def read(folder: Any) -> dict[str, Any]:
  """{'scales': {scale: {'records': [...]}}}; empty where there is no file."""
  path = pathlib.Path(folder) / FILE
  if not path.exists():
    return {'version': VERSION, 'scales': {}}
  try:
    found = json.loads(path.read_text('utf-8'))
    wrong = _wrong(found)
  except ValueError as e:
    wrong = str(e)
  if wrong:
    raise ExperimentError(
      f'{path} is not what `run` writes ({wrong}); restore it, or move it away and run again'
    )
  return found


def _wrong(found: Any) -> str:
  """What is not as `run` writes it, or nothing."""
  if not isinstance(found, dict) or not isinstance(found.get('scales'), dict):
    return 'it has no scales'
  if found.setdefault('version', VERSION) != VERSION:
    return f'version {found["version"]!r} instead of {VERSION}'
  for name, scale in found['scales'].items():
    records = scale.get('records') if isinstance(scale, dict) else None
    if not isinstance(records, list):
      return f'scale {name!r} has no records'
    for i, record in enumerate(records):
      if wrong := malformed(record):
        return f'scale {name!r}, record {i}: {wrong}'
  return ''


def malformed(record: Any) -> str:
  """What a record lacks, or nothing."""
  if not isinstance(record, dict):
    return 'no record'
  for key, kind in FIELDS.items():
    value = record.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
      return f'{key} is {value!r}'
  return ''


def write(folder: Any, results: dict[str, Any]) -> None:
  """Raises ExperimentError where the folder cannot be written."""
  path = pathlib.Path(folder) / FILE
  try:
    files.write(path, json.dumps(results, indent=1, sort_keys=True) + '\n')
  except OSError as e:
    raise ExperimentError(f'{path} cannot be written: {e.strerror or e}') from None


@contextlib.contextmanager
def changed(folder: Any) -> Iterator[dict[str, Any]]:
  """The results, to be changed within `with` and written behind it; other runners of the folder
  wait meanwhile, and nobody's records are lost.
  """
  with _locked(pathlib.Path(folder)):
    results = read(folder)
    yield results
    write(folder, results)


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[None]:
  try:
    import fcntl
  except ImportError:
    yield
    return
  try:
    file = open(folder / LOCK, 'a')
  except OSError as e:
    raise ExperimentError(f'{folder} cannot be written: {e.strerror or e}') from None
  with file:
    with contextlib.suppress(OSError):  # file systems without locks are accepted as they are
      fcntl.flock(file, fcntl.LOCK_EX)
    yield


def record(trial: Trial, measure: str, outcome: dict[str, Any]) -> dict[str, Any]:
  """measure: the digest of what was measured."""
  return {k: getattr(trial, k) for k in KEYS} | outcome | dict(measure=measure)


def below(records: Iterable[dict[str, Any]]) -> dict[str, dict[str, float]]:
  """{run: what it cost} of the runs that trials rest on, each once."""
  return {k: v for r in records for k, v in r.get('before', {}).items()}


class Known(dict):
  """(identity, code) -> record, of one scale and one measure. others: records of other measures."""

  others: int = 0


def known(results: dict, scale: str, measure: str) -> Known:
  """What counts of a scale for a measure."""
  found = results['scales'].get(scale, {}).get('records', ())
  out = Known({(r['identity'], r['code']): r for r in found if r.get('measure') == measure})
  out.others = sum(r.get('measure') != measure for r in found)
  return out


def merge(results: dict, scale: str, new: Iterable[dict[str, Any]]) -> None:
  """Adds records; of one arm, point, seed and budget the newest stays, a finished one before an
  unfinished one.
  """
  place = lambda r: (r['arm'], json.dumps(r['point'], sort_keys=True), r['seed'], r['steps'])
  kind = lambda r: (r['identity'], r['code'], r.get('measure'))
  entry = results['scales'].setdefault(scale, {'records': []})
  kept = {place(r): r for r in entry['records']}
  for r in new:
    old = kept.get(place(r))
    same = old is not None and kind(old) == kind(r)
    if not same or r['status'] in execute.ENDED or old['status'] not in execute.ENDED:
      kept[place(r)] = r
  entry['records'] = [kept[k] for k in sorted(kept, key=str)]
