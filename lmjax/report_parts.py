"""The page's HTML that needs no script: headline, tables, samples, records."""

import html
import json
from typing import Any, Mapping, Sequence

from lmjax import rundir
from lmjax.report_curves import is_number
from lmjax.report_data import Run

DETAILS = 12  # runs whose records are on a page of several
_SHOWN_ROWS = 500


def header(title: str, runs: Sequence[Run]) -> str:
  """The title, and the state of one run."""
  state = text(runs[0].facts['state'])
  badge = f'<span class="badge {state.replace(" ", "-")}">{state}</span>'
  return (
    f'<header><h1>{text(title)}</h1>{badge if len(runs) == 1 else ""}'
    '<button id="theme" type="button" hidden>Change theme</button></header>'
  )


def single(run: Run, notes: Sequence[str]) -> str:
  """One run."""
  facts = run.facts
  done = (
    f'{facts["steps"]:,} of {facts["planned"]:,} steps'
    if facts['planned']
    else f'{facts["steps"]:,} steps'
  )
  parts = [
    done,
    _quantity(facts['tokens'], 'tokens'),
    _duration(facts['seconds']),
    run.versions.get('device'),
  ]
  line = ' &middot; '.join(text(p) for p in parts if p)
  summary = f'<p class="summary">{line}</p>{_notes(notes)}{_tiles(run)}'
  drawn = facts['points'] or run.evals
  none = '<p class="summary">No training step has been logged yet.</p>'
  return summary + (_controls() if drawn else none) + _details(run)


def comparison(runs: Sequence[Run], notes: Sequence[str]) -> str:
  """Several runs: the script fills the tables, each of which can be filtered and sorted."""
  table = lambda name, title: (
    f'<section id="{name}" aria-label="{title}" hidden><h2>{title}</h2></section>'
  )
  drawn = any(r.facts['points'] or r.evals for r in runs)
  sections = ''.join(
    f'<details class="run"><summary>{text(r.name)}</summary>{_details(r)}</details>'
    for r in runs[:DETAILS]
  )
  more = (
    f'<p class="note">Of the first {DETAILS} runs; the pages of the others have theirs.</p>'
    if len(runs) > DETAILS
    else ''
  )
  return (
    _notes(notes)
    + (_controls() if drawn else '<p class="summary">No training step has been logged yet.</p>')
    + table('runs', 'Runs')
    + table('differences', 'What differs in the configs')
    + table('scores', 'Evaluations')
    + table('texts', 'Samples')
    + f'<section><h2>Records</h2>{more}{sections}</section>'
  )


def _numbers(run: Run) -> list[tuple[str, Any]]:
  """Headline numbers that are known, as (label, text)."""
  facts, best, last = run.facts, run.facts['best'], run.facts['last']
  out = []
  for label, line in (('best validation loss', best), ('last validation loss', last)):
    if line:
      error = f' ± {line["loss_stderr"]:.4f}' if is_number(line.get('loss_stderr')) else ''
      out.append((label, f'{line["loss"]:.4f}{error}'))
  for label, key in (('perplexity', 'perplexity'), ('bits per byte', 'bits_per_byte')):
    if best and is_number(best.get(key)):
      out.append((label, f'{best[key]:.4g}'))
  if facts['train_loss'] is not None:
    out.append(('last training loss', f'{facts["train_loss"]:.4f}'))
  if facts['tokens_per_second'] is not None:
    out.append(('tokens/s', f'{facts["tokens_per_second"]:,.0f}'))
  if facts['data_wait'] is not None:
    out.append(('data wait', f'{100 * facts["data_wait"]:.2g}%'))
  return out


def _tiles(run: Run) -> str:
  best, last = run.facts['best'], run.facts['last']
  notes = {'best validation loss': best, 'last validation loss': last}
  out = []
  for label, value in _numbers(run):
    if label.startswith('last validation') and last is best:
      continue
    value, _, error = value.partition(' ')
    note = f'{error} at step {notes[label]["step"]:,}' if notes.get(label) else error
    out.append(
      f'<div><dt>{text(label)}</dt><dd>{text(value)}<small>{text(note)}</small></dd></div>'
    )
  return f'<dl class="tiles">{"".join(out)}</dl>' if out else ''


def _notes(notes: Sequence[str]) -> str:
  """What was thinned or left out."""
  return ''.join(f'<p class="warning" role="note">{text(n)}</p>' for n in notes)


def _controls() -> str:
  axes = ''.join(
    f'<label><input type="radio" name="axis" value="{v}"'
    f'{" checked" if v == "step" else ""}>{n}</label>'
    for v, n in (('step', 'steps'), ('tokens', 'tokens'), ('flops', 'FLOPs'), ('seconds', 'time'))
  )
  moves = ''.join(
    f'<button type="button" data-move="{v}" aria-label="{n}" title="{n}">{s}</button>'
    for v, n, s in (
      ('in', 'Zoom in', '+'),
      ('out', 'Zoom out', '&minus;'),
      ('left', 'Move left', '&larr;'),
      ('right', 'Move right', '&rarr;'),
      ('all', 'Show all', 'all'),
    )
  )
  return f"""<section aria-label="Curves">
<form class="controls" aria-label="How to draw the curves">
<fieldset><legend>Horizontal axis</legend>{axes}</fieldset>
<fieldset><legend>Logarithmic</legend>
<label><input type="checkbox" id="logx">horizontal</label>
<label><input type="checkbox" id="logy">vertical</label></fieldset>
<label>Smoothing <input type="range" id="smooth" min="0" max="0.99" step="0.01" value="0.6">
<output for="smooth"></output></label>
<span class="moves" role="group" aria-label="Zoom">{moves}</span>
</form>
<p class="note">Drag over a plot, or spread two fingers on it, to zoom; double click (or double tap)
to see all; with the keyboard: +, -, arrows and 0 in a plot.</p>
<p class="note" id="drawn" aria-live="polite"></p>
<div id="charts"></div><div id="families"></div>
<details id="more" hidden><summary>More curves</summary>
<label class="filter">Filter <input type="search" id="curves"></label>
<p class="note" aria-live="polite"></p><div class="grid"></div></details>
<noscript><p class="warning">The curves, and the tables of several runs, need JavaScript.</p>
</noscript>
</section>"""


def _details(run: Run) -> str:
  kinds = dict.fromkeys(x['kind'] for x in run.lines if x['kind'] not in ('train', 'sample'))
  tables = ''.join(_eval_table(run, k) for k in kinds)
  config = ''.join(
    f'<tr><th scope="row">{text(k)}</th>'
    f'<td>{text(v if isinstance(v, str) else json.dumps(v))}</td></tr>'
    for k, v in rundir.flatten(run.config).items()
  )
  versions = ''.join(
    f'<tr><th scope="row">{text(k)}</th><td>{text(v)}</td></tr>' for k, v in run.versions.items()
  )
  return (
    _samples(run)
    + tables
    + (_fold('Config', f'<table class="pairs">{config}</table>') if config else '')
    + (_fold('Versions', f'<table class="pairs">{versions}</table>') if versions else '')
    + (_fold('Commands', f'<pre>{text(run.commands)}</pre>') if run.commands else '')
  )


def _samples(run: Run) -> str:
  found, logged = run.samples[::-1], len(run.of_kind('sample'))
  if not found:
    return ''
  out = []
  for i, (step, prompt, written) in enumerate(found):
    shown = f'<b>{text(prompt)}</b>{text(written.removeprefix(prompt))}'
    out.append(
      f'<details{" open" if not i else ""}><summary>Step {step:,}</summary>'
      f'<pre class="sample">{shown}</pre></details>'
    )
  more = f'<p class="note">{len(found)} of {logged}, spread over the run.</p>'
  return f'<section><h2>Samples</h2>{more if logged > len(found) else ""}{"".join(out)}</section>'


def _eval_table(run: Run, kind: str) -> str:
  rows = sorted(run.of_kind(kind), key=lambda x: -x['step'])
  rows = [{k: v for k, v in x.items() if k not in ('kind', 'time')} for x in rows]
  title = 'Evaluations' if kind == 'eval' else kind.capitalize()
  more = (
    f'<p class="note">The newest {_SHOWN_ROWS} of {len(rows)}.</p>'
    if len(rows) > _SHOWN_ROWS
    else ''
  )
  return f'<section><h2>{text(title)}</h2>{more}{_table(rows[:_SHOWN_ROWS])}</section>'


def _table(rows: Sequence[Mapping[str, Any]], *, words: bool = True) -> str:
  keys = list(dict.fromkeys(k for r in rows for k in r))
  head = ''.join(f'<th scope="col">{text(k.replace("_", " ") if words else k)}</th>' for k in keys)
  body = ''.join(
    '<tr>' + ''.join(f'<td>{text(_cell(r.get(k, "")))}</td>' for k in keys) + '</tr>' for r in rows
  )
  return (
    '<div class="scroll" tabindex="0" role="region" aria-label="table">'
    f'<table><thead><tr>{head}</tr></thead>'
    f'<tbody>{body}</tbody></table></div>'
  )


def _fold(title: str, content: str) -> str:
  inner = f'<div class="scroll" tabindex="0">{content}</div>'
  return f'<details><summary>{text(title)}</summary>{inner}</details>'


# ------------------------------------------------------------------ text


def text(value: Any) -> str:
  """What stands on the page as it is, whatever it holds."""
  return html.escape(str(value), quote=True)


def _cell(value: Any) -> str:
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    return '' if value is None else str(value)
  whole = isinstance(value, int) or value.is_integer() and abs(value) < 1e15
  return f'{int(value):,}' if whole else f'{value:.5g}'


def _quantity(value: float | None, unit: str) -> str:
  if value is None:
    return ''
  for size, letter in ((1e12, 'T'), (1e9, 'B'), (1e6, 'M'), (1e3, 'k')):
    if value >= size:
      return f'{value / size:.3g}{letter} {unit}'
  return f'{value:.0f} {unit}'


def _duration(seconds: float | None) -> str:
  if seconds is None:
    return ''
  if seconds < 120:
    return f'{seconds:.0f} s'
  return f'{seconds / 60:.0f} min' if seconds < 7200 else f'{seconds / 3600:.1f} h'
