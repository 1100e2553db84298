"""What the reports of this folder say of the machine, and how a table is printed."""

import json
import math
import pathlib
import statistics
import sys

import jax

from lmjax import versions
from lmjax.experiment import local
from lmjax.experiment import tables


def head(flags) -> dict:
  """Command, device, versions and settings."""
  return dict(
    command=' '.join(['python', *sys.argv]),
    device=jax.devices()[0].device_kind,
    cores=len(local.cores()),
    python=sys.version.split()[0],
    jax=jax.__version__,
    lmjax=versions.package('lmjax'),
    settings={k: v for k, v in vars(flags).items() if k != 'out'},
  )


def table(columns, rows) -> str:
  return '\n'.join(tables.row(*r) for r in (columns, ['---'] * len(columns), *rows))


def spread(ratios, digits: int = 2) -> str:
  """Median, least and largest."""
  shown = [f'{f(ratios):.{digits}f}' for f in (statistics.median, min, max)]
  return '{} ({} to {})'.format(*shown)


def exponent(sizes, costs) -> float:
  """p of cost ~ size^p between the last two of them."""
  (a, b), (x, y) = sizes[-2:], costs[-2:]
  return math.log(y / x) / math.log(b / a)


def write(report: dict, out):
  if out:
    pathlib.Path(out).write_text(json.dumps(report, indent=1) + '\n', encoding='utf-8')
