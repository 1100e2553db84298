"""`results.json`: what finished trials gave, by scale; what `report` reads and nothing else.

A record is a trial's and stands for its identity and code: it counts for the experiment as it is
declared now only where both are unchanged, so that nothing stale is ever averaged in.
"""

import json
import pathlib
from typing import Any, Iterable

from lmjax import files
from lmjax.experiment import execute
from lmjax.experiment.declare import ExperimentError
from lmjax.experiment.trials import Trial

FILE = 'results.json'
KEYS = ('arm', 'point', 'seed', 'steps', 'identity', 'code')


def read(folder: Any) -> dict[str, Any]:
  """{'scales': {scale: {'records': [...]}}}; empty where there is no file."""
  path = pathlib.Path(folder) / FILE
  if not path.exists():
    return {'scales': {}}
  try:
    found = json.loads(path.read_text('utf-8'))
    assert isinstance(found['scales'], dict)
    for scale in found['scales'].values():
      assert all(set(KEYS) <= set(r) and 'status' in r for r in scale['records'])
    return found
  except (ValueError, KeyError, TypeError, AssertionError):
    raise ExperimentError(
      f'{path} is not what `run` writes; restore it, or move it away and run again'
    ) from None


def write(folder: Any, results: dict[str, Any]) -> None:
  files.write(pathlib.Path(folder) / FILE, json.dumps(results, indent=1, sort_keys=True) + '\n')


def record(trial: Trial, outcome: dict[str, Any]) -> dict[str, Any]:
  return {k: getattr(trial, k) for k in KEYS} | outcome


def known(results: dict, scale: str) -> dict[tuple[str, str], dict[str, Any]]:
  """(identity, code) -> record, of one scale."""
  found = results['scales'].get(scale, {}).get('records', ())
  return {(r['identity'], r['code']): r for r in found}


def merge(results: dict, scale: str, new: Iterable[dict[str, Any]]) -> None:
  """Adds records; of one arm, point, seed and budget the newest stays, a finished one before an
  unfinished one.
  """
  place = lambda r: (r['arm'], json.dumps(r['point'], sort_keys=True), r['seed'], r['steps'])
  entry = results['scales'].setdefault(scale, {'records': []})
  kept = {place(r): r for r in entry['records']}
  for r in new:
    old = kept.get(place(r))
    same = old is not None and (old['identity'], old['code']) == (r['identity'], r['code'])
    if not same or r['status'] in execute.ENDED or old['status'] not in execute.ENDED:
      kept[place(r)] = r
  entry['records'] = [kept[k] for k in sorted(kept, key=str)]
