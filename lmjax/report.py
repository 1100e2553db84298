"""report.html: runs on one self-contained page, without network.

  python -m lmjax.report runs/first             writes runs/first/report.html
  python -m lmjax.report runs/* [--out=x.html]  compares them; writes runs/report.html, which the
                                                same command passes over when it is given again

The page stays small enough to open, however many runs there are: what was thinned or left out is
said on it.

Everything that comes from a run (samples, config, names) is text to the page: escaped in HTML, and
`<` escaped in the embedded JSON, so that a model that writes `</script>` writes just that.
"""

import argparse
import collections
import importlib.resources
import json
import os
import pathlib
import sys
from typing import Any, Callable, Sequence

from lmjax import bucket
from lmjax import exits
from lmjax import files
from lmjax import progress
from lmjax import report_data
from lmjax import report_parts
from lmjax import report_table
from lmjax.report_data import Run

_STYLES = ('uPlot.min.css', 'report.css')
_LIBRARY = 'uPlot.iife.min.js'
_SCRIPTS = ('values.js', 'charts.js', 'tables.js', 'page.js')  # one program, in this order


def write_report(
  workdir: Any,
  *,
  others: Sequence[Any] = (),
  out: Any = None,
  state: str | None = None,
  names: Sequence[str] | None = None,
  told: Callable[[str], None] = lambda text: None,
) -> Any:
  """Writes the page and returns its path.

  Args:
    workdir: a run directory, in any state.
    others: more run directories to compare with. What is none is left out, and said.
    out: where to write; `report.html` in workdir, or in the folder that several are in, by default.
      Written through a rename, so that a reader never sees half.
    state: 'finished', 'running' or 'stopped' if the caller knows; worked out from the metrics
      otherwise.
    names: of the runs; their folders' by default.
    told: is called with what was left out.

  Raises:
    ValueError: a workdir does not exist, or of several none is that of a run.
  """
  workdirs = [workdir, *others]
  most = report_data.share(len(workdirs))
  runs, left = [], []
  counted = progress.track(workdirs, 'reading', unit='runs') if others else workdirs
  for i, w in enumerate(counted):
    try:
      run = report_data.load(w, state, most)
      if others and not report_data.holds_run(run.path):
        raise ValueError(f'{str(w)!r} holds no run: neither config.json nor metrics.jsonl')
    except ValueError as e:
      if not others:
        raise
      left.append(str(e))
      told(f'left out: {e}')
      continue
    run.name = run.name if names is None else names[i]
    if i >= report_parts.DETAILS:
      run.lines = []
    runs.append(run)
  if not runs:
    raise ValueError(f'no run to report: {left[0]}')
  _distinct_names(runs)
  out = _target(out) if out is not None else _beside([r.path for r in runs], bool(others))
  files.write(out, page(runs, left, out))
  return out


def _beside(paths: Sequence[Any], several: bool) -> Any:
  """Where the page of these runs is looked for."""
  if not several:
    return paths[0] / 'report.html'
  if any('://' in str(p) for p in paths):
    raise ValueError('--out=FILE is needed for runs in an object store')
  return pathlib.Path(os.path.commonpath([p.parent for p in paths])) / 'report.html'


def _target(out: Any) -> Any:
  text = str(out)
  if '://' in text:
    return bucket.place(text)
  if '\0' in text or not pathlib.Path(text).name:
    raise ValueError(f'--out={text[:60]!r}: the name of a file is expected, as in --out=x.html')
  return pathlib.Path(text).expanduser()


def page(runs: Sequence[Run], left: Sequence[str] = (), out: Any = None) -> str:
  """The HTML of one run or of a comparison; `left` says what was left out, `out` is its place."""
  folder = importlib.resources.files('lmjax') / 'assets' / 'report'
  read = lambda names: ''.join((folder / n).read_text('utf-8') for n in names)
  title = runs[0].name if len(runs) == 1 else f'{len(runs):,} runs compared'
  notes = report_table.notes(runs, left)
  data = report_table.data(runs, out)
  notes += data.pop('notes', [])
  parts = report_parts
  body = parts.single(runs[0], notes) if len(runs) == 1 else parts.comparison(runs, notes)
  return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:">
<title>{parts.text(title)} - lmjax</title>
<style>{read(_STYLES)}</style>
</head>
<body>
<main>
{parts.header(title, runs)}
{body}
</main>
<script id="data" type="application/json">{embed(data)}</script>
<script>{read((_LIBRARY,))}</script>
<script>'use strict';
(() => {{
{read(_SCRIPTS)}
}})();
</script>
</body>
</html>
"""


def embed(data: Any) -> str:
  """JSON that can stand inside a script element."""
  text = json.dumps(data, allow_nan=False, separators=(',', ':'))
  return text.replace('<', '\\u003c').replace('>', '\\u003e').replace('&', '\\u0026')


def _distinct_names(runs: Sequence[Run]) -> None:
  """Runs in folders of the same name are told apart by their paths."""
  names = collections.Counter(r.name for r in runs)
  for r in runs:
    if names[r.name] > 1:
      r.name = str(r.path)


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(
    prog='python -m lmjax.report',
    description='Writes report.html for one or more runs.',
    formatter_class=argparse.RawDescriptionHelpFormatter,
    epilog='examples:\n  python -m lmjax.report runs/quickstart\n'
    f'  python -m lmjax.report runs/* --out=compared.html\n\n{exits.PLAIN}',
  )
  parser.add_argument(
    'workdir', nargs='+', help='run directories; several are compared on one page'
  )
  parser.add_argument(
    '--out', help='the file to write; report.html in the workdir, or beside several, by default'
  )
  args = parser.parse_args(argv)
  # Of `runs/*`, the page that this command wrote there before.
  pages = {w for w in args.workdir if pathlib.Path(w).name == 'report.html' and os.path.isfile(w)}
  workdirs = [w for w in args.workdir if w not in pages] or args.workdir
  try:
    with bucket.told():
      say = lambda text: print(text, file=sys.stderr)
      out = write_report(workdirs[0], others=workdirs[1:], out=args.out, told=say)
  except (ValueError, OSError) as e:
    print(f'error: {e}', file=sys.stderr)
    return 2
  print(out)
  return 0


if __name__ == '__main__':
  sys.exit(main())
