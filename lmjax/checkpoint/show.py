"""What the tool prints of steps and arrays. The texts come from files: nothing in them reaches the
terminal but printable characters.
"""

import contextlib
import datetime
import json
import math
from typing import Any, Iterable, Sequence

from lmjax import progress
from lmjax.checkpoint import arrays
from lmjax.checkpoint import manifest
from lmjax.checkpoint import scan
from lmjax.checkpoint import tree as tree_lib


def plain(text: Any) -> str:
  """Printable characters as they are, others as Python writes them."""
  return ''.join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))


def size(count: int) -> str:
  """Bytes in powers of ten."""
  for unit, name in ((10**12, 'TB'), (10**9, 'GB'), (10**6, 'MB'), (10**3, 'kB')):
    if count >= unit:
      return f'{count / unit:.1f} {name}'
  return f'{count} B'


@contextlib.contextmanager
def busy(text: str):
  """Shows on a terminal that something takes its time."""
  with progress.Count(plain(text)) as count:
    count.at(0)
    yield


def steps(folder: Any, found: scan.Found) -> None:
  """A table of the steps of a run."""
  rows = []
  best = scan.best(found.whole, 'loss')
  for step in sorted({*found.whole, *found.damaged, *found.unfinished}):
    if step in found.whole:
      state = 'whole, best loss' if step == best else 'whole'
    elif step in found.damaged:
      state = f'damaged: {found.damaged[step]}'
    else:
      state = 'an unfinished save, which is not used'
    rows.append((str(step), *_facts(folder / str(step)), state))
  print(plain(folder))
  _table(('step', 'saved', 'bytes', 'arrays', 'scores', 'state'), rows, right='step bytes arrays')
  print('whole: every file is there with its size; `verify` also reads what is in them')


def _facts(where: Any) -> tuple[str, str, str, str]:
  try:
    body = manifest.read(where)
  except manifest.ManifestError:
    return '-', '-', '-', '-'
  total = sum(f['size'] for f in body['files'].values())
  return _time(body['time']), size(total), str(len(body['leaves'])), _scores(body) or '-'


def step(where: Any) -> None:
  """All that a step says of itself. Raises ValueError without a manifest that can be read."""
  body = manifest.read(where)
  versions = ''.join(f', {k} {v}' for k, v in body.get('versions', {}).items())
  total = sum(f['size'] for f in body['files'].values())
  print(plain(where))
  print(f'step     {body["step"]}')
  print(f'saved    {_time(body["time"])} by lmjax {plain(body["lmjax"] or "?")}{plain(versions)}')
  print(f'files    {len(body["files"])}, {size(total)}')
  print(f'scores   {_scores(body) or "none"}')
  print(f'cursor   {_cursor(where)}')
  for problem in manifest.verify(where, checksums=False):
    print(f'damaged  {plain(problem)}')
  print()
  rows = [row for top in arrays.tops(body) for row in _tree(body, top)]
  rows.append(_totals('total', body['leaves']))
  _table(('arrays', 'type', 'elements', 'bytes'), rows, right='elements bytes')


def _tree(body: dict, top: str) -> Iterable[tuple[str, str, str, str]]:
  """Rows of one top-level entry: its totals, then what is below, indented."""
  leaves = {k: e for k, e in body['leaves'].items() if k.split('/')[0] == top}
  if list(leaves) == [top]:
    yield _row(top, leaves[top])
    return
  yield _totals(f'{top}/', leaves)
  shown: set[str] = {top}
  for name in sorted(leaves, key=lambda k: k.split('/')):
    parts = name.split('/')
    for depth in range(2, len(parts)):
      parent = '/'.join(parts[:depth])
      if parent not in shown:
        shown.add(parent)
        yield f'{"  " * (depth - 1)}{plain(parts[depth - 1])}/', '', '', ''
    yield _row('  ' * (len(parts) - 1) + parts[-1], leaves[name])


def _totals(label: str, leaves: dict) -> tuple[str, str, str, str]:
  count = sum(math.prod(e['shape']) for e in leaves.values())
  text = '1 array' if len(leaves) == 1 else f'{len(leaves)} arrays'
  return plain(label), text, f'{count:,}', size(sum(map(tree_lib.nbytes, leaves.values())))


def _row(label: str, entry: dict) -> tuple[str, str, str, str]:
  count = math.prod(entry['shape'])
  return plain(label), plain(tree_lib.show(entry)), f'{count:,}', size(tree_lib.nbytes(entry))


def _cursor(where: Any) -> str:
  try:
    return plain(json.dumps(arrays.cursor(where)))
  except ValueError as e:
    return plain(e)


def _scores(body: dict) -> str:
  return '  '.join(f'{plain(k)} {v:.6g}' for k, v in sorted(body['scores'].items()))


def _time(seconds: float) -> str:
  try:
    return f'{datetime.datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M:%S}'
  except (ValueError, OverflowError, OSError):
    return '?'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, right: str) -> None:
  """Columns as wide as they need to be, the last one unpadded; those named in `right` are flush
  right.
  """
  rows = [head, *([plain(cell) for cell in row] for row in rows)]
  widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
  for row in rows:
    cells = [
      cell.rjust(w) if name in right.split() else cell.ljust(w)
      for cell, w, name in zip(row, widths, head)
    ]
    print('  '.join(cells).rstrip())
