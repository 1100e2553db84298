"""A folder -> a run directory of one checkpoint, step 0."""

import copy
import json
import math
import pathlib
import shlex
from typing import Any, Collection

from lmjax import build as build_lib
from lmjax import config as config_lib
from lmjax import files
from lmjax import own_files
from lmjax import quantize
from lmjax import registry
from lmjax import rundir
from lmjax.interop import chat
from lmjax.interop import hf
from lmjax.interop.hf import _fields
from lmjax.interop.hf import _folder
from lmjax.interop.hf import _gguf
from lmjax.interop.hf import _settings
from lmjax.interop.hf import _tensors
from lmjax.interop.hf import _tokenizer

ORIGIN = 'huggingface.json'  # the folder's config.json, in the run directory
RECIPE = 'recipe.py'
MANY = 10_000  # layers, of which a list is made
START = 'decoder_start_token_id'  # as config.json has it


def load(
  source: str,
  *,
  tokenizer: str = '',
  length: int = 0,
  dtype: str = 'float32',
  ignore: Collection[str] = (),
) -> tuple[build_lib.Run, dict[str, Any], _folder.Folder, _tokenizer.Found | None]:
  """(run, params on the host, folder, tokenizer or None where a spec was given) of a folder.

  tokenizer: a spec in place of the folder's. length: tokens in a row, at first those of the config.
  dtype: of the parameters. ignore: fields of config.json to leave out of account. Raises ValueError
  naming the file, and the field or the tensors.
  """
  folder = _gguf.open_source(files.expanded(source))
  where = str(folder.path) if folder.path.is_file() else str(folder.path / _folder.CONFIG)
  family = hf.family(folder.config.get('model_type'), where)
  h = _fields.checked(folder.config, family.FIELDS, where, ignore)
  settings = config_lib.named('model', lambda: family.to_settings(h))
  c = _settings.config(settings)
  c.model.param_dtype = dtype
  found = None if tokenizer else folder.tokenizer()
  c.data.tokenizer = tokenizer or found.spec(found.files[0].parent)
  c.data.bos = found is not None and found.bos
  c.data.mask_documents = False  # as most were trained; texts may begin with eos then
  _set_length(c, length)
  _check_ids(c, settings.vocab, folder)
  run = build_lib.build(config_lib.resolve(c))
  _check_depth(run, folder, where)
  if found is not None:
    _check_start(run, folder)
  _tensors.check_copies(family.TABLE, run, folder)
  return run, _tensors.read(family.TABLE, run, folder), folder, found


def to_run(source: str, out: str, **options: Any) -> dict[str, Any]:
  """Makes the run directory `out` of a folder; returns what was found, to be told. Options are
  those of `load`; raises ValueError as it does, and where `out` is not free. Nothing is written
  then.
  """
  target = rundir.local(out)
  quantize.check_free(target)
  run, params, folder, found = load(source, **options)
  c = copy.deepcopy(run.config)
  rundir.make(target)
  if found is not None:
    found.copy(target)
    c['data']['tokenizer'] = found.spec(target)
    c = config_lib.resolve(c)
    beside = chat.keep(found.files[0].parent, target)
    own_files.record(target, [f.name for f in found.files], beside)
  with files.kept(target):
    files.write(target / ORIGIN, json.dumps(folder.config, indent=2) + '\n')
    files.write(target / RECIPE, recipe(target))
  quantize.write(target, c, dict(params=params, vars={}), 0)
  return dict(
    model_type=folder.config['model_type'],
    parameters=sum(math.prod(a.shape) for _, a in _tensors.leaves(params)),
    tensors=len(folder.shapes),
    tokenizer=c['data']['tokenizer'] + (f' ({found.told})' if found and found.told else ''),
    length=c['data']['length'],
  )


def _set_length(c, length: int):
  if not length or length == c.data.length:
    return
  if length < 2:
    raise ValueError(f'--length={length}: at least 2 tokens are expected')
  if registry.make('position', c.model.position, length=length).fact('added'):
    raise ValueError(
      f'--length={length}: positions of this model are a table of {c.data.length}, which cannot be '
      'cut'
    )
  c.data.length = length
  c.batch_tokens = max(c.batch_tokens // length, 1) * length


def _check_ids(c, vocab: int, folder: _folder.Folder):
  """Raises ValueError where the tokenizer has ids that the model does not know."""
  tok = build_lib.tokenizer(config_lib.resolve(c))
  if tok.vocab_size > vocab:
    raise ValueError(
      f'{folder.path}: the tokenizer has ids up to {tok.vocab_size - 1}, and the model knows '
      f'{vocab} (vocab_size in {_folder.CONFIG}): they do not belong together'
    )


def _check_depth(run: build_lib.Run, folder: _folder.Folder, where: str):
  """Raises ValueError for more layers than could be listed, let alone be there."""
  of = lambda model: sum(s.repeats * len(s.pattern) for s in model.segments)
  layers = sum(of(model) for _, model in _tensors.stacks(run))
  if layers > max(MANY, len(folder.shapes)):
    raise ValueError(
      f'{where}: a model of {layers} layers, and the folder has {len(folder.shapes)} tensors; '
      'at least one for each layer is expected'
    )


def start(run: build_lib.Run) -> int | None:
  """The token that a decoder which reads a source starts from; None where prompts say nothing."""
  asked = [t.fn for t in run.transforms if hasattr(t.fn, 'prompt')]
  if not run.architecture.model.encoders or not asked:
    return None
  return asked[0].prompt([run.tokenizer.eos]).text[0]


def _check_start(run: build_lib.Run, folder: _folder.Folder):
  """Raises ValueError where the folder's decoder starts from another token than the run's."""
  said, here = folder.config.get(START), start(run)
  if None not in (said, here) and said != here:
    raise ValueError(
      f'{folder.path / _folder.CONFIG}: {START}={str(said)[:80]}: the token {here} is expected, '
      'the pad of its tokenizer, else bos or eos'
    )


def recipe(target: pathlib.Path) -> str:
  """A recipe that goes on from these weights."""
  command = f'python -m lmjax.main --config={shlex.quote(str(target / RECIPE))} --workdir=DIR'
  # Of a path that may have any name, within a docstring.
  command = command.replace('\\', '\\\\').replace('"', '\\"')
  return f'''"""Training that begins with the weights of this run directory; model, tokenizer,
length and objective are those of its config.json, all else is the default.

command: {command} --config.steps=1000
"""

import pathlib

from ml_collections import ConfigDict

from lmjax import own_files
from lmjax.config import default


def get_config():
  here = pathlib.Path(__file__).resolve().parent
  made = own_files.config(here)
  c = default()
  c.model = ConfigDict(made['model'])
  for key in ('tokenizer', 'length', 'bos', 'eos', 'mask_documents', 'transforms'):
    c.data[key] = made['data'][key]
  c.batch_tokens, c.objective, c.init_from = made['batch_tokens'], made['objective'], str(here)
  return c
'''
