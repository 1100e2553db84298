"""Curves for a screen: columns of equal length, thinned by an honest rule.

Of each stretch of rows the lowest and the highest value of every curve stay, in the order in which
they came, so that spikes of each are seen. They stand at the rows of the extremes of the loss (or
of the first curve): off by less than one stretch. The first and the last row stay as they are.
"""

import math
from typing import Any, Mapping, Sequence

import numpy as np

MAX_POINTS = 2000  # rows of a curve
FEW = 50  # rows; below that a run keeps fewer curves instead
MAIN = ('loss', 'lr', 'grad_norm', 'tokens_per_second')
_NOT_CURVES = ('kind', 'step', 'time', 'tokens', 'seconds')
_X = ('step', 'tokens', 'seconds')


def is_scalar(value: Any) -> bool:
  return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
  """A finite number, booleans excluded."""
  return is_scalar(value) and math.isfinite(value)


def clock(train: Sequence[Mapping]) -> dict[str, np.ndarray]:
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


def columns(
  rows: Sequence[Mapping], time: Mapping[str, np.ndarray], numbers: int, only: Sequence[str] = ()
) -> tuple[dict[str, list], list[str]]:
  """(columns, names of curves that found no room).

  Args:
    rows: lines of one kind.
    time: of `clock`.
    numbers: how many the columns may hold together; with too few of them only the main curves stay,
      or the first of these alone.
    only: the curves to take, or all.
  """
  rows = sorted(rows, key=lambda x: x['step'])
  table = {'step': np.array([x['step'] for x in rows], float)}
  table['tokens'] = _interpolate(table['step'], time['token_step'], time['tokens'])
  table['seconds'] = _interpolate(table['step'], time['step'], time['seconds'])
  names = dict.fromkeys(k for x in rows for k, v in x.items() if is_scalar(v))
  for name in only or names:
    if name not in _NOT_CURVES:
      column = np.array([x[name] if is_number(x.get(name)) else math.nan for x in rows], float)
      if np.isfinite(column).any():
        table[name] = column
  curves = [k for k in table if k not in _X]
  kept = _room(curves, len(rows), numbers)
  table = {k: table[k] for k in (*_X, *kept)}
  thin = thinned(table, min(MAX_POINTS, max(4, numbers // len(table))))
  out = {k: [_rounded(v) for v in column] for k, column in thin.items()}
  out['step'] = [int(s) for s in thin['step']]
  return out, [k for k in curves if k not in kept]


def _room(curves: list[str], rows: int, numbers: int) -> list[str]:
  main = [k for k in MAIN if k in curves] or curves[:1]
  for some in (curves, main, main[:1]):
    if numbers // (len(some) + len(_X)) >= min(rows, FEW):
      return some
  return main[:1]


def thinned(table: Mapping[str, np.ndarray], most: int) -> dict[str, np.ndarray]:
  """At most `most` rows (4 or more) of a table with columns `step`, `tokens`, `seconds` and
  curves."""
  n = len(table['step'])
  if n <= most:
    return dict(table)
  curves = [k for k in table if k not in _X]
  size = -(-(n - 2) // (most // 2 - 1))  # rows of a stretch
  starts = np.arange(1, n - 1, size)
  ends = np.minimum(starts + size, n - 1) - 1
  at = {k: _extremes(table[k], starts, size) for k in curves}
  anchor = at['loss'] if 'loss' in at else at[curves[0]] if curves else (starts, ends)
  same = anchor[0] == anchor[1]
  rows = np.stack([np.where(same, starts, anchor[0]), np.where(same, ends, anchor[1])], 1).ravel()
  twice = np.concatenate([[False], rows[1:] == rows[:-1]])
  pick = lambda column, pair: np.concatenate(
    [column[:1], column[np.stack(pair, 1).ravel()][~twice], column[-1:]]
  )
  pairs = {k: (rows[::2], rows[1::2]) if k in _X else at[k] for k in table}
  return {k: pick(table[k], pair) for k, pair in pairs.items()}


def _extremes(column: np.ndarray, starts: np.ndarray, size: int):
  """Rows of the lowest and the highest value of each stretch, the earlier one first."""
  inner = column[1:-1]
  padded = np.concatenate([inner, np.full(len(starts) * size - len(inner), math.nan)])
  stretches = padded.reshape(len(starts), size)
  low = np.where(np.isnan(stretches), math.inf, stretches).argmin(1)
  high = np.where(np.isnan(stretches), -math.inf, stretches).argmax(1)
  return starts + np.minimum(low, high), starts + np.maximum(low, high)


def _interpolate(x: np.ndarray, xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
  return np.interp(x, xs, ys) if xs.size else np.full(len(x), math.nan)


def _rounded(value: Any) -> float | int | None:
  """Seven digits are more than a screen shows and keep the page small."""
  if not math.isfinite(value):
    return None
  short = float(f'{value:.7g}')
  return int(short) if short.is_integer() and abs(short) < 1e15 else short
