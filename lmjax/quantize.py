"""python -m lmjax.quantize RUN --method=SPEC --out=DIR: a run's best checkpoint in fewer bits.

The matrices of all layers become codes; embeddings, norms and the head stay.
DIR is a run directory for --eval and lmjax.sample. Methods that need inputs see
rows of the run's training data; the validation set is only scored.
`python -m lmjax.main --list quantizer` shows the methods.

examples:
  python -m lmjax.quantize runs/q --method='rtn(bits=8)' --out=runs/q8
  python -m lmjax.quantize runs/q --method='gptq(bits=4)' --out=runs/q4
"""

import argparse
import copy
import json
import math
import pathlib
import sys
from typing import Any

import jax
import numpy as np

from lmjax import build as build_lib
from lmjax import config as config_lib
from lmjax import evaluate
from lmjax import exits
from lmjax import feed as feed_lib
from lmjax import files
from lmjax import own_files
from lmjax import progress
from lmjax import registry
from lmjax import restore
from lmjax import run as run_lib
from lmjax import rundir
from lmjax.checkpoint import Checkpointer

FILE = 'quantize.json'  # what the command found, in DIR


def main(argv: list[str] | None = None) -> int:
  p = argparse.ArgumentParser(
    prog='python -m lmjax.quantize',
    formatter_class=argparse.RawDescriptionHelpFormatter,
    description=__doc__,
    epilog=exits.PLAIN,
    allow_abbrev=False,
  )
  p.add_argument('run', metavar='RUN', help='a run directory')
  p.add_argument('--method', required=True, help="a quantizer, as in 'gptq(bits=4, group=64)'")
  p.add_argument('--out', required=True, help='the run directory to write; absent, or empty')
  p.add_argument('--data', default='', help="source of calibration rows; the run's own by default")
  p.add_argument(
    '--rows', type=int, default=128, help='calibration rows; 0: nothing is calibrated or compared'
  )
  p.add_argument(
    '--allow_code', action='store_true', help="import the modules that the run's config names"
  )
  flags = p.parse_args(argv)
  try:
    run_lib.compilation_cache()
    found = quantize(
      flags.run,
      flags.method,
      flags.out,
      data=flags.data,
      rows=flags.rows,
      allow_code=flags.allow_code,
    )
    print(table(found))
    return 0
  except (ValueError, exits.DiskError, exits.Ended) as e:
    print(f'lmjax: {e}', file=sys.stderr)
    return getattr(e, 'status', exits.USER)


def quantize(
  source: str,
  method: str,
  out: str,
  *,
  data: str = '',
  rows: int = 128,
  allow_code: bool = False,
  before: dict[str, float] | None = None,
) -> dict[str, Any]:
  """Writes the run directory `out` and returns what its FILE holds: see `table`.

  before: the validation scores of the run where they are known, since this takes as long as all the
    rest. Raises ValueError on what cannot be used; then nothing but tokenized text was written.
  """
  from lmjax.quantizers import _layers

  part = config_lib.named('quantizer', lambda: registry.make('quantizer', method), value=method)
  target = rundir.local(out)
  check_free(target)
  if rows < 0:
    raise ValueError(f'--rows={rows}: at least 0 is expected')
  if part.fact('calibration') and not rows:
    raise ValueError(f'--rows=0: {method} needs calibration rows, at least 1 is expected')
  trained = restore.resolved(source, allow_code=allow_code)
  run = used_run(trained)
  params, vars, step = restore.best(run, source, restore.run_memory(trained))
  _layers.matrices(run, params)
  new = build_lib.build(quantized_config(run.config, part().linear))
  path, calibrating = rundir.local(source), calibration_run(run, data)
  feed = feed_of(calibrating, path, target)
  seen = rows_of(feed, rows)
  with progress.Count('quantizing', run.model.depth, 'layers') as count:
    told = lambda layer: count.at(layer.depth)
    result = _layers.Pass(run, new, part)(params, vars, seen, told)
  shapes = {k: v for k, v in new.shapes.items() if k != 'params'}
  like = dict(params=new.shapes['params'], vars=shapes)
  after = restore.fitted(dict(params=result.params, vars=result.vars), like, method)
  if before is None:
    before = held_out(run, params, vars, feed)
  found = dict(
    source=str(source),
    method=str(part),
    step=step,
    rows=len(seen.get('tokens', ())),
    data=calibrating.config['data']['train'],
    bytes=[build_lib.nbytes((params, vars)), build_lib.nbytes((after['params'], after['vars']))],
    matrices=matrix_bytes(params, vars, after),
    loss=[before, held_out(new, after['params'], after['vars'], feed)],
    errors=result.errors,
    outliers=None if result.outliers is None else result.outliers.features,
  )
  rundir.make(target)
  config = own_files.give(path, target, new.config)
  write(target, config, after, step, found['loss'][1])
  with files.kept(target / FILE):
    files.write(target / FILE, json.dumps(found, indent=1) + '\n')
  return found


def check_free(path: pathlib.Path) -> None:
  """Raises ValueError where a directory holds anything but tokenized text."""
  if path.is_dir() and any(p.name != 'tokens' for p in path.iterdir()):
    raise ValueError(f'--out={path}: the directory is not empty; nothing is overwritten')


def used_run(trained: dict[str, Any]) -> build_lib.Run:
  """The run of a config with the objective that it is used by (fact `used_as`): what only training
  needs, such as another run's variables, has no place in a quantized model. Raises ValueError where
  the variables are not those of one network.
  """
  c = copy.deepcopy(trained)
  inner = registry.make('objective', c['objective']).fact('used_as')
  c['objective'] = c['objective'] if inner is None else str(inner)
  run = build_lib.build(c)
  if hasattr(run.objective, 'variables'):
    raise ValueError(
      f'config.objective={c["objective"]!r} trains several networks; a run of one network is '
      'expected, such as one that began from this by a surgery (--list surgery)'
    )
  if run.architecture.model.encoders:
    raise ValueError(
      f'config.model.architecture={c["model"]["architecture"]!r} reads a source; a model without '
      'an encoder is expected, others are not quantized'
    )
  return run


def quantized_config(config: dict[str, Any], linear: str) -> dict[str, Any]:
  """The config of the quantized model. It is not trained: what would train it is the default, since
  an optimizer may ask for matrices that are there no more.
  """
  c, default = copy.deepcopy(config), config_lib.default()
  c['model']['linear'] = linear
  c['init_from'] = ''
  for key in ('optim', 'schedule', 'guard'):
    c[key] = default[key]
  return config_lib.resolve(c)


# ------------------------------------------------------------------ data


def calibration_run(run: build_lib.Run, data: str) -> build_lib.Run:
  """The run with another source of training rows, and with constant weights of the sources, by
  which any number of rows is drawn. Raises ValueError where it is the validation set.
  """
  follows = registry.make('mixture', run.config['data']['mixture']).fact('needs')
  if not data and not follows:
    return run
  c = copy.deepcopy(run.config)
  c['data']['train'] = data or c['data']['train']
  c['data']['mixture'] = config_lib.default()['data']['mixture']
  made = build_lib.build(config_lib.resolve(c))
  if data and made.config['data']['train'] == made.config['data']['valid']:
    raise ValueError(
      f'--data={data}: this is config.data.valid, which is scored; other text is expected'
    )
  return made


def feed_of(run: build_lib.Run, source: pathlib.Path, target: pathlib.Path) -> feed_lib.Feed:
  """The data of a run; tokens go where the run kept its own, else into the new directory."""
  kept = run.config['data']['cache'] or (source / 'tokens').is_dir()
  if not kept:
    rundir.make(target)
  return feed_lib.Feed(run, source if kept else target)


def rows_of(feed: feed_lib.Feed, count: int) -> dict[str, np.ndarray]:
  """The first rows of training data, as fields of shape (count, ...); {} for none."""
  batches: list[dict] = []
  while sum(len(b['tokens']) for b in batches) < count:
    batches.append(jax.device_get(next(iter(feed.train(len(batches))))))
  if not batches:
    return {}
  return {k: np.concatenate([b[k] for b in batches])[:count] for k in batches[0]}


def held_out(run: build_lib.Run, params, vars, feed: feed_lib.Feed) -> dict[str, float]:
  """Scores of the validation set, {} where there is none."""
  if not feed.has_valid:
    return {}
  step = evaluate.make_eval_step(run)
  return evaluate.held_out(step, params, vars, feed.valid(), bytes_per_token=feed.bytes_per_token)


# ------------------------------------------------------------------ what is written and told


def write(
  target: pathlib.Path,
  config: dict[str, Any],
  variables: dict[str, Any],
  step: int,
  scores: dict[str, float] | None = None,
) -> None:
  """A run directory with one checkpoint: params and vars, with its scores."""
  opened = rundir.open_rundir(target, config, config_lib.fingerprint(config))
  try:
    with Checkpointer(opened.checkpoints) as checkpoints:
      known = {k: v for k, v in (scores or {}).items() if math.isfinite(v)}
      checkpoints.save(step, variables, {'step': step}, known)
  finally:
    opened.close()


def matrix_bytes(params, vars, after: dict) -> dict[str, Any]:
  """Numbers in the matrices, and bytes that hold them before and after."""
  flat = lambda tree: {
    jax.tree_util.keystr(k): a for k, a in jax.tree_util.tree_leaves_with_path(tree)
  }
  old, new = flat(dict(params=params, vars=vars)), flat(after)
  gone, come = (
    [a for k, a in old.items() if k not in new],
    [a for k, a in new.items() if k not in old],
  )
  return dict(
    numbers=sum(a.size for a in gone), bytes=[sum(a.nbytes for a in x) for x in (gone, come)]
  )


def table(found: dict[str, Any]) -> str:
  """What the command prints: bytes, losses, errors of each layer's matrices, outlier features."""
  m = found['matrices']
  rows = [('', 'before', 'after')]
  rows.append(('bytes, all', *(f'{n:,}' for n in found['bytes'])))
  rows.append(('bytes, matrices of layers', *(f'{n:,}' for n in m['bytes'])))
  rows.append(('bits a number of them', *(f'{8 * n / m["numbers"]:.4g}' for n in m['bytes'])))
  for key in ('loss', 'perplexity'):
    if key in found['loss'][0]:
      rows.append((f'validation {key}', *(f'{x[key]:.5g}' for x in found['loss'])))
  parts = [aligned(rows)]
  if any(found['errors']):
    names = list(dict.fromkeys(n for e in found['errors'] for n in e))
    head = [('layer', *names)]
    body = [
      (str(i), *(f'{e[n]:.2e}' if n in e else '' for n in names))
      for i, e in enumerate(found['errors'])
    ]
    parts.append(
      f'squared error of outputs over their squares, {found["rows"]} rows:\n' + aligned(head + body)
    )
  if found['outliers'] is not None:
    which = ', '.join(map(str, found['outliers'])) or 'none'
    parts.append(f'emergent outlier features: {which}')
  return '\n\n'.join(parts)


def aligned(rows: list[tuple]) -> str:
  """Columns of text, the first to the left, the others to the right."""
  widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
  line = lambda r: '  '.join(
    x.ljust(w) if i == 0 else x.rjust(w) for i, (x, w) in enumerate(zip(r, widths))
  )
  return '\n'.join(line(r).rstrip() for r in rows)


if __name__ == '__main__':
  sys.exit(main())
