"""A run's best checkpoint -> a folder."""

import math
import pathlib
from typing import Any

import ml_dtypes
import numpy as np

from lmjax import build as build_lib
from lmjax import config as config_lib
from lmjax import files
from lmjax import restore
from lmjax import rundir
from lmjax.interop import chat
from lmjax.interop import hf
from lmjax.interop.hf import _fields
from lmjax.interop.hf import _folder
from lmjax.interop.hf import _importing
from lmjax.interop.hf import _settings
from lmjax.interop.hf import _tensors
from lmjax.interop.hf import _tokenizer
from lmjax.models import model as model_lib

DTYPES = {
  'float32': np.dtype(np.float32),
  'bfloat16': np.dtype(ml_dtypes.bfloat16),
  'float16': np.dtype(np.float16),
}


def to_folder(
  source: str,
  out: str,
  *,
  dtype: str = 'float32',
  shard_size: int = 5_000_000_000,
  tokenizer: bool = True,
  model_type: str = '',
  allow_code: bool = False,
) -> dict[str, Any]:
  """Writes the folder `out` of a run directory; returns what was written, to be told.

  dtype: of the tensors. shard_size: bytes of a file of tensors, at most. model_type: the
  architecture, at first the one that the run was imported from, else the first that fits. Raises
  ValueError naming the parts that no architecture has; nothing is written then.
  """
  if dtype not in DTYPES:
    raise ValueError(f'--dtype={dtype}: one of {", ".join(DTYPES)} is expected')
  path, target = rundir.local(source), rundir.local(out)
  if target.is_file() or (target.is_dir() and any(target.iterdir())):
    raise ValueError(f'--out={target}: it is not empty; nothing is overwritten')
  run = build_lib.build(restore.resolved(path, allow_code=allow_code))
  name, config = fields(run, model_type, path)
  table = hf.family(name, source).TABLE
  params, vars, step = restore.best(run, path)
  params, vars = run.network(params, vars)
  if any(True for _ in _tensors.leaves(vars)):
    raise ValueError(f'{source}: variables {", ".join(vars)} have no counterpart')
  wanted = {p.name: p for p in _tensors.pieces(table, run)}
  arrays = dict(_tensors.leaves(params))
  kind = DTYPES[dtype]
  made = lambda n: _cast(n, _tensors.outward(wanted[n], arrays), kind)
  sizes = {n: math.prod(p.shape) * kind.itemsize for n, p in wanted.items()}
  rundir.make(target)
  ids = {k: v for k, v in _ids(run, path).items() if k not in config}
  config |= dict(torch_dtype=dtype, **ids)
  names = _tokenizer.write(target, run.config, run.tokenizer) if tokenizer else []
  names += chat.hand_on(run, target) if tokenizer else []
  names += _folder.write(target, config, sizes, made, shard_size)
  return dict(
    model_type=name, step=step, tensors=len(sizes), bytes=sum(sizes.values()), files=names
  )


def fields(run: build_lib.Run, asked: str, path: pathlib.Path) -> tuple[str, dict[str, Any]]:
  """(model_type, config.json) of a run. Raises ValueError naming the parts that the nearest
  architecture does not have.
  """
  own = _settings.view(run.config, run.model)
  before = _origin(path).get('model_type')
  names = [asked] if asked else sorted(hf.names(), key=lambda n: (n != before, n))
  missing = {}
  for name in names:
    family = hf.family(name, '--model_type')
    config = family.to_fields(own).items()
    config = {k: v for k, v in config if v is not None or k in family.FIELDS.nullable}
    # A size that the run's parts do not have: the comparison names those parts.
    config = dict.fromkeys(family.FIELDS.sizes, 1) | config
    config = dict(architectures=[family.CLASS], model_type=name, **config)
    missing[name] = _missing(own, family, config)
    if not missing[name]:
      return name, config
  nearest = min(missing, key=lambda n: len(missing[n]))
  raise ValueError(
    f'{path}: no architecture of {", ".join(names)} is this model; {nearest}, the nearest, has '
    f'no {"; ".join(missing[nearest])}'
  )


def _origin(path: pathlib.Path) -> dict[str, Any]:
  """The config.json that a run was imported with."""
  file = path / _importing.ORIGIN
  return files.read_json(file) if file.is_file() else {}


def _missing(own: _settings.View, family: Any, config: dict[str, Any]) -> list[str]:
  """What of a model a config.json does not say."""
  try:
    h = _fields.checked(config, family.FIELDS, 'config')
    c = config_lib.resolve(_settings.config(family.to_settings(h)))
    model = model_lib.resolve(c['model'], c['model']['vocab'], c['data']['length'])
  except ValueError as e:
    return [f'settings for it ({e})']
  return _settings.differences(own, _settings.view(c, model))


def _cast(name: str, x: np.ndarray, kind: np.dtype) -> np.ndarray:
  with np.errstate(over='ignore'):
    out = x.astype(kind)
  if kind.itemsize < x.dtype.itemsize and not np.array_equal(np.isfinite(out), np.isfinite(x)):
    raise ValueError(
      f'--dtype={kind}: {name} has values up to {np.abs(x).max():.3g}, too large for it; float32 '
      'or bfloat16 can hold them'
    )
  return out


def _ids(run: build_lib.Run, path: pathlib.Path) -> dict[str, int | list[int]]:
  found = {f'{k}_token_id': getattr(run.tokenizer, k) for k in ('bos', 'eos', 'pad')}
  before = _origin(path).get('eos_token_id')  # of an imported run; a chat ends by any of several
  if isinstance(before, list) and found['eos_token_id'] in before:
    found['eos_token_id'] = before
  found[_importing.START] = _importing.start(run)
  return {k: v for k, v in found.items() if v is not None}
