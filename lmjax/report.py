"""report.html: a run on one self-contained page, without network.

  python -m lmjax.report WORKDIR                        writes WORKDIR/report.html
  python -m lmjax.report WORKDIR WORKDIR... --out=x.html   compares runs, curves overlaid

Everything that comes from a run (samples, config, names) is text to the page: escaped in HTML, and
`<` escaped in the embedded JSON, so that a model that writes `</script>` writes just that.
"""

import argparse
import html
import importlib.resources
import json
import pathlib
import sys
from typing import Any, Mapping, Sequence

from lmjax import files
from lmjax import report_data
from lmjax import rundir
from lmjax.report_data import Run, is_number

_ASSETS = ('uPlot.min.css', 'report.css', 'uPlot.iife.min.js', 'report.js')
_SHOWN_SAMPLES = 20
_SHOWN_ROWS = 500


def write_report(
  workdir: Any, *, others: Sequence[Any] = (), out: Any = None, state: str | None = None
) -> pathlib.Path:
  """Writes the page and returns its path.

  Args:
    workdir: a run directory, in any state.
    others: more run directories to compare with.
    out: where to write; `report.html` in workdir by default. Written through a rename, so that a
      reader never sees half.
    state: 'finished', 'running' or 'stopped' if the caller knows; worked out from the metrics
      otherwise.

  Raises:
    ValueError: a workdir does not exist.
  """
  runs = [report_data.load(workdir, state), *(report_data.load(w) for w in others)]
  _distinct_names(runs)
  out = _target(out) if out is not None else runs[0].path / 'report.html'
  files.write(out, page(runs))
  return out


def _target(out: Any) -> pathlib.Path:
  text = str(out)
  if '\0' in text or not pathlib.Path(text).name:
    raise ValueError(f'--out={text[:60]!r}: the name of a file is expected, as in --out=x.html')
  return pathlib.Path(text).expanduser()


def page(runs: Sequence[Run]) -> str:
  """The HTML of one run or of a comparison."""
  asset = {
    n: (importlib.resources.files('lmjax') / 'assets' / 'report' / n).read_text('utf-8')
    for n in _ASSETS
  }
  data = {'runs': [{'name': r.name, 'train': r.train, 'evals': r.evals} for r in runs]}
  title = runs[0].name if len(runs) == 1 else f'{len(runs)} runs compared'
  body = _single(runs[0]) if len(runs) == 1 else _comparison(runs)
  return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{_text(title)} - lmjax</title>
<style>{asset['uPlot.min.css']}{asset['report.css']}</style>
</head>
<body>
<main>
{_header(title, runs)}
{body}
</main>
<script id="data" type="application/json">{embed(data)}</script>
<script>{asset['uPlot.iife.min.js']}</script>
<script>{asset['report.js']}</script>
</body>
</html>
"""


def embed(data: Any) -> str:
  """JSON that can stand inside a script element."""
  text = json.dumps(data, allow_nan=False, separators=(',', ':'))
  return text.replace('<', '\\u003c').replace('>', '\\u003e').replace('&', '\\u0026')


# ------------------------------------------------------------------ parts of the page


def _header(title: str, runs: Sequence[Run]) -> str:
  state = _text(runs[0].facts['state'])
  badge = f'<span class="badge {state.replace(" ", "-")}">{state}</span>'
  return (
    f'<header><h1>{_text(title)}</h1>{badge if len(runs) == 1 else ""}'
    '<button id="theme" type="button" hidden>Change theme</button></header>'
  )


def _single(run: Run) -> str:
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
  line = ' &middot; '.join(_text(p) for p in parts if p)
  summary = f'<p class="summary">{line}</p>{_warning(run)}{_tiles(run)}'
  return summary + _charts(facts['points']) + _details(run)


def _comparison(runs: Sequence[Run]) -> str:
  rows = []
  for r in runs:
    rows.append(
      {
        'run': r.name,
        'state': r.facts['state'],
        'steps': r.facts['steps'],
        'tokens': r.facts['tokens'],
      }
      | {k: v for k, v in _numbers(r)}
    )
  keyed = {f'run {i}': rundir.flatten(r.config) for i, r in enumerate(runs)}
  keys = sorted({k for flat in keyed.values() for k in flat})
  differ = [k for k in keys if len({json.dumps(f.get(k)) for f in keyed.values()}) > 1]
  table = [
    {'key': k} | {r.name: keyed[f'run {i}'].get(k, '') for i, r in enumerate(runs)} for k in differ
  ]
  sections = ''.join(
    f'<details class="run"><summary>{_text(r.name)}</summary>{_warning(r)}{_details(r)}</details>'
    for r in runs
  )
  return (
    f'<section><h2>Results</h2>{_table(rows)}</section>'
    '<section><h2>What differs in the configs</h2>'
    f'{_table(table, words=False) if table else "<p>Nothing.</p>"}</section>'
    f'{_charts(max(r.facts["points"] for r in runs))}{sections}'
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
      f'<div><dt>{_text(label)}</dt><dd>{_text(value)}<small>{_text(note)}</small></dd></div>'
    )
  return f'<dl class="tiles">{"".join(out)}</dl>' if out else ''


def _warning(run: Run) -> str:
  odd = run.facts['nonfinite']
  text = f'{odd:,} logged steps hold' if odd > 1 else '1 logged step holds'
  return (
    f'<p class="warning" role="note">{text} NaN or infinite values, which are not drawn.</p>'
    if odd
    else ''
  )


def _charts(points: int) -> str:
  if not points:
    return '<p class="summary">No training step has been logged yet.</p>'
  axes = ''.join(
    f'<label><input type="radio" name="axis" value="{v}"'
    f'{" checked" if v == "step" else ""}>{n}</label>'
    for v, n in (('step', 'steps'), ('tokens', 'tokens'), ('seconds', 'time'))
  )
  note = (
    f'<p class="note">{points:,} steps were logged; '
    'of each stretch the lowest and highest loss are drawn.</p>'
    if points > report_data.MAX_POINTS
    else ''
  )
  return f"""<section aria-label="Curves">
<form class="controls" aria-label="How to draw the curves">
<fieldset><legend>Horizontal axis</legend>{axes}</fieldset>
<label><input type="checkbox" id="logy">Logarithmic loss</label>
<label>Smoothing <input type="range" id="smooth" min="0" max="0.99" step="0.01" value="0.6">
<output for="smooth"></output></label>
</form>{note}<div id="charts"></div>
<details id="more" hidden><summary>More curves</summary><div class="grid"></div></details>
<noscript><p class="warning">The curves need JavaScript; the numbers below do not.</p></noscript>
</section>"""


def _details(run: Run) -> str:
  kinds = dict.fromkeys(x['kind'] for x in run.lines if x['kind'] not in ('train', 'sample'))
  tables = ''.join(_eval_table(run, k) for k in kinds)
  config = ''.join(
    f'<tr><th scope="row">{_text(k)}</th>'
    f'<td>{_text(v if isinstance(v, str) else json.dumps(v))}</td></tr>'
    for k, v in rundir.flatten(run.config).items()
  )
  versions = ''.join(
    f'<tr><th scope="row">{_text(k)}</th><td>{_text(v)}</td></tr>' for k, v in run.versions.items()
  )
  return (
    _samples(run)
    + tables
    + (_fold('Config', f'<table class="pairs">{config}</table>') if config else '')
    + (_fold('Versions', f'<table class="pairs">{versions}</table>') if versions else '')
    + (_fold('Commands', f'<pre>{_text(run.commands)}</pre>') if run.commands else '')
  )


def _samples(run: Run) -> str:
  lines = sorted(run.of_kind('sample'), key=lambda x: -x['step'])
  if not lines:
    return ''
  out = []
  for i, x in enumerate(lines[:_SHOWN_SAMPLES]):
    prompt, text = str(x.get('prompt') or ''), str(x.get('text') or '')
    text = text.removeprefix(prompt)
    out.append(
      f'<details{" open" if not i else ""}><summary>Step {x["step"]:,}</summary>'
      f'<pre class="sample"><b>{_text(prompt)}</b>{_text(text)}</pre></details>'
    )
  more = (
    f'<p class="note">The newest {_SHOWN_SAMPLES} of {len(lines)}.</p>'
    if len(lines) > _SHOWN_SAMPLES
    else ''
  )
  return f'<section><h2>Samples</h2>{more}{"".join(out)}</section>'


def _eval_table(run: Run, kind: str) -> str:
  rows = sorted(run.of_kind(kind), key=lambda x: -x['step'])
  rows = [{k: v for k, v in x.items() if k not in ('kind', 'time')} for x in rows]
  title = 'Evaluations' if kind == 'eval' else kind.capitalize()
  more = (
    f'<p class="note">The newest {_SHOWN_ROWS} of {len(rows)}.</p>'
    if len(rows) > _SHOWN_ROWS
    else ''
  )
  return f'<section><h2>{_text(title)}</h2>{more}{_table(rows[:_SHOWN_ROWS])}</section>'


def _table(rows: Sequence[Mapping[str, Any]], *, words: bool = True) -> str:
  keys = list(dict.fromkeys(k for r in rows for k in r))
  head = ''.join(f'<th scope="col">{_text(k.replace("_", " ") if words else k)}</th>' for k in keys)
  body = ''.join(
    '<tr>' + ''.join(f'<td>{_text(_cell(r.get(k, "")))}</td>' for k in keys) + '</tr>' for r in rows
  )
  return (
    '<div class="scroll" tabindex="0" role="region" aria-label="table">'
    f'<table><thead><tr>{head}</tr></thead>'
    f'<tbody>{body}</tbody></table></div>'
  )


def _fold(title: str, content: str) -> str:
  inner = f'<div class="scroll" tabindex="0">{content}</div>'
  return f'<details><summary>{_text(title)}</summary>{inner}</details>'


# ------------------------------------------------------------------ text


def _text(value: Any) -> str:
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


def _distinct_names(runs: Sequence[Run]) -> None:
  """Runs in folders of the same name are told apart by their paths."""
  names = [r.name for r in runs]
  for r in runs:
    if names.count(r.name) > 1:
      r.name = str(r.path)


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(
    prog='python -m lmjax.report', description='Writes report.html for one or more runs.'
  )
  parser.add_argument(
    'workdir', nargs='+', help='run directories; several are compared on one page'
  )
  parser.add_argument(
    '--out', help='the file to write; report.html in the first workdir by default'
  )
  args = parser.parse_args(argv)
  try:
    out = write_report(args.workdir[0], others=args.workdir[1:], out=args.out)
  except (ValueError, OSError) as e:
    print(f'error: {e}', file=sys.stderr)
    return 2
  print(out)
  return 0


if __name__ == '__main__':
  sys.exit(main())
