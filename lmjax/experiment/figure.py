"""The figure of an experiment: what each arm reached at each budget, and how it was tuned."""

import math
import pathlib
from typing import Any

from lmjax.experiment import checks
from lmjax.experiment import declare
from lmjax.experiment import results as results_lib
from lmjax.experiment import summary as summary_lib


def write(folder: Any, scale: str) -> pathlib.Path:
  """Writes results-<scale>.svg. Raises ExperimentError where matplotlib is not installed."""
  try:
    import matplotlib
  except ImportError:
    raise declare.ExperimentError(
      "figures need matplotlib: pip install 'lmjax[experiment]'; tables and results are written"
    ) from None
  matplotlib.use('Agg')
  matplotlib.rcParams['svg.hashsalt'] = 'lmjax'  # the same numbers give the same file
  from matplotlib import pyplot as plt

  e, results = checks.load(folder), results_lib.read(folder)
  s = summary_lib.summarize(e, scale, results)
  fig, (ends, grid) = plt.subplots(1, 2, figsize=(11, 4.5))
  last = max(e.scales[scale].budgets)  # that all arms have
  tuned_on = 'final loss' if e.tuned_on == 'loss' else 'what is compared'
  for i, arm in enumerate(e.arms):
    style = dict(color=f'C{i % 10}', linestyle='-' if i < 10 else '--')
    cells = [c for c in s.cells if c.arm is arm and c.sample.values]
    if cells:
      error = [0.0 if math.isnan(c.sample.sd) else c.sample.sd for c in cells]
      x = [c.tokens for c in cells]
      ends.errorbar(x, [c.sample.mean for c in cells], error, marker='o', label=arm.name, **style)
    key = next(iter(arm.grid), None)
    tried = sorted(
      (point[key], loss)
      for point, loss in s.cell(arm.name, last).tuning
      if loss is not None and isinstance(point.get(key), (int, float))
    )
    if tried:
      grid.plot([k for k, _ in tried], [v for _, v in tried], marker='.', **style)
      grid.set_xlabel(key)
  ends.set(xscale='log', xlabel='tokens', title='tuned: mean and sd of seeds')
  grid.set(xscale='log', title=f'tuning: {tuned_on} after {last} steps')
  if ends.get_legend_handles_labels()[0]:
    ends.legend(fontsize=7, ncol=2)
  fig.tight_layout()
  path = pathlib.Path(folder) / f'results-{scale}.svg'
  partial = path.with_name(f'{path.name}.partial')
  fig.savefig(partial, format='svg', metadata={'Date': None})
  plt.close(fig)
  partial.replace(path)
  return path
