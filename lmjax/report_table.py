"""Several runs beside each other: their settings that differ, scores, and what was left out, as the
page's script reads them.
"""

import json
import os
import urllib.parse
from typing import Any, Sequence

from lmjax import report_curves
from lmjax import rundir
from lmjax.report_data import Run

KEYS = 300  # settings, and as many scores
_LONG = 2000  # characters of a setting


def data(runs: Sequence[Run], out: Any = None) -> dict[str, Any]:
  """All that the script draws; `out` is the page's place, from which runs' own pages are linked."""
  shown = [_run(r, out) for r in runs]
  if len(runs) == 1:
    return {'runs': shown}
  keys, values, settings, more = _settings(runs)
  names = dict.fromkeys(k for r in runs for k in r.scores)
  scores = list(names)[:KEYS]
  place = {k: i for i, k in enumerate(scores)}
  for run, one, own in zip(runs, shown, settings):
    one['config'] = own
    found = {place[k]: v for k, v in run.scores.items() if k in place}
    one['scores'] = [[i, *map(_short, v)] for i, v in sorted(found.items())]
    one['samples'] = run.samples
  left = [(more, 'settings that differ'), (len(names) - len(scores), 'scores')]
  notes = [f'{n:,} {what} found no room in the tables.' for n, what in left if n]
  return {'runs': shown, 'keys': keys, 'values': values, 'scores': scores, 'notes': notes}


def _run(run: Run, out: Any) -> dict[str, Any]:
  f, best, last = run.facts, run.facts['best'], run.facts['last']
  return {
    'name': run.name,
    'href': _link(run, out),
    'state': f['state'],
    'steps': f['steps'],
    'tokens': f['tokens'],
    'seconds': f['seconds'],
    'best': _short(best and best['loss']),
    'error': _short(best and best.get('loss_stderr')),
    'last': _short(last and last['loss']),
    'loss': _short(f['train_loss']),
    'speed': _short(f['tokens_per_second']),
    'flops': f['flops_per_token'],
    'odd': f['nonfinite'],
    'train': run.train,
    'evals': run.evals,
  }


def _short(value: Any) -> Any:
  return float(f'{value:.7g}') if report_curves.is_number(value) else None


def _link(run: Run, out: Any) -> str | None:
  """From the page to the run's own, where it has one on this machine."""
  own = run.path / 'report.html'
  if out is None or '://' in str(out) or '://' in str(own) or not own.is_file():
    return None
  return urllib.parse.quote(os.path.relpath(own, os.path.dirname(os.path.abspath(out))))


def _settings(runs: Sequence[Run]):
  """(keys that differ, values of each, for each run the numbers of its values, how many more keys
  differ)."""
  flat = [{k: _text(v) for k, v in rundir.flatten(r.config).items()} for r in runs]
  keys = sorted({k for f in flat for k in f})
  differ = [k for k in keys if len({f.get(k) for f in flat}) > 1]
  shown = differ[:KEYS]
  tables = {k: {v: i for i, v in enumerate(dict.fromkeys(f.get(k) for f in flat))} for k in shown}
  rows = [[tables[k][f.get(k)] for k in shown] for f in flat]
  return shown, [list(tables[k]) for k in shown], rows, len(differ) - len(shown)


def _text(value: Any) -> str:
  text = value if isinstance(value, str) else json.dumps(value)
  return text if len(text) <= _LONG else text[:_LONG] + ' [...]'


def notes(runs: Sequence[Run], left: Sequence[str]) -> list[str]:
  """What was thinned or left out, in sentences."""
  out, many = [], len(runs) > 1
  whole = 'Give fewer runs to see more of each.' if many else ''
  of = lambda key: [r for r in runs if r.facts[key]]
  thin = [r for r in runs if r.facts['points'] > r.facts['drawn']]
  who = lambda found: f' of {len(found):,} runs' if many else ''
  if thin:
    logged = max(r.facts['points'] for r in thin)
    out.append(
      f'{logged:,} steps were logged{" at most" if many else ""}; of each stretch the lowest and '
      f'highest value are drawn, {max(r.facts["drawn"] for r in thin):,} points{who(thin)}. {whole}'
    )
  if found := of('passed'):
    n = sum(r.facts['passed'] for r in found)
    out.append(f'{n:,} lines of training{who(found)} were passed over, evenly spread. {whole}')
  if found := of('hidden'):
    names = list(dict.fromkeys(k for r in found for k in r.facts['hidden']))
    some = ', '.join(names[:5]) + (', ...' if len(names) > 5 else '')
    out.append(f'{len(names):,} curves{who(found)} found no room: {some}. {whole}')
  if found := of('nonfinite'):
    n = sum(r.facts['nonfinite'] for r in found)
    text = f'{n:,} logged steps hold' if n > 1 else '1 logged step holds'
    out.append(f'{text} NaN or infinite values{who(found)}, which are not drawn.')
  if found := of('unread'):
    n = sum(r.facts['unread'] for r in found)
    text = f'{n:,} lines' if n > 1 else '1 line'
    out.append(
      f'{text} of metrics.jsonl{who(found)} could not be read and stayed as they are; a kill while '
      'writing leaves one that is not whole.'
    )
  if left:
    more = f' and {len(left) - 5:,} more' if len(left) > 5 else ''
    out.append(f'Left out: {"; ".join(left[:5])}{more}.')
  return [t.strip() for t in out]
