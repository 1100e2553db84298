"""A page of the curves of an experiment's trials, from run directories that are still there."""

import pathlib
from typing import Any, Mapping, Sequence

from lmjax import report
from lmjax import report_data
from lmjax.experiment import declare
from lmjax.experiment import execute


def write(
  e: declare.Experiment, folder: Any, scale: str, records: Sequence[Mapping], runs: Any
) -> pathlib.Path | None:
  """Writes `<runs>/<experiment>-<scale>.html` and returns its path; None without any run directory.
  Arms that share a run stand beside each other in its name.
  """
  found: dict[pathlib.Path, list[str]] = {}
  for r in records:
    path = execute.place(runs, e.base, r['identity'], r['code']) / 'run'
    if report_data.holds_run(path):
      point = ''.join(f' {k}={v!r}' for k, v in r['point'].items())
      name = f'{r["arm"]}, {r["steps"]} steps, seed {r["seed"]}{point}'
      found.setdefault(path, []).append(name)
  if not found:
    return None
  first, *others = found
  names = [' = '.join(n) for n in found.values()]
  out = pathlib.Path(runs) / f'{pathlib.Path(folder).resolve().name}-{scale}.html'
  return report.write_report(first, others=others, out=out, names=names)
