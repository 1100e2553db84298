"""Configs: defaults, recipes, overrides, resolution, fingerprint.

A config is an `ml_collections.ConfigDict` whose leaves are either quantities or spec strings (see
`specs.py`). A recipe is a file with `get_config()` (or `get_config(arg)`, called as
`recipe.py:arg`) that starts from `default()`. Overrides are in `overrides.py`.
"""

import fnmatch
import functools
import hashlib
import importlib.util
import inspect
import json
import pathlib
from typing import Any

from ml_collections import ConfigDict

from lmjax import groups
from lmjax import kernels
from lmjax import registry
from lmjax import specs
from lmjax.groups import ConfigError, flat
from lmjax.leaves import is_spec, kind_of, RANGES, surgery
from lmjax.registry import nearest

BLOCK_PARTS = ('mixer', 'ffn', 'norm', 'residual')


def default() -> ConfigDict:
  """A small causal model on the bundled corpus; every recipe starts here. Each leaf's meaning is in
  the comment beside it.
  """
  c = ConfigDict()
  c.seed = 0
  c.steps = 1000  # updates
  c.batch_tokens = 16_384  # tokens per update over all devices
  c.micro_batches = 1  # slices of a batch whose gradients are summed one after another
  c.peak_lr = 1e-3  # the schedule's factor times this
  c.objective = 'clm()'
  c.optim = 'clip(norm=1.0) | adam(b2=0.95) | decay(rate=0.1)'
  c.schedule = 'cosine()'
  c.guard = ''  # refuses updates beyond those that are not finite, e.g. 'spikes()'
  # A run directory (or run/checkpoints/STEP) whose parameters start this run, or a surgery of one.
  c.init_from = ''

  c.model = model()
  c.data = data()
  c.mesh = mesh()
  # Implementations: auto, the first that can, or a name of `lmjax/kernels/<operation>`.
  c.kernels = ConfigDict(dict.fromkeys(kernels.OPERATIONS, 'auto'))
  c.offload = ''  # 'optimizer': its state waits in the host's memory between steps

  c.bad_steps = ConfigDict(
    dict(
      limit=50,  # refused updates in a row after which the run rewinds or ends
      rewind=0,  # steps to go back by then, 0 = end; the batches from there on are left out:
      skip=200,  # so many, which must reach past the bad ones
      times=3,  # rewinds before the run ends
    )
  )
  c.recompute_every = 0  # steps; each such step is computed twice and compared, 0 = never
  c.watchdog = ConfigDict(
    dict(
      seconds=1800,  # in which nothing moves before the watchdog speaks, 0 = off
      exit=False,  # whether it then ends the process, with the exit status for 'start again'
    )
  )

  c.log_every = 10
  c.checkpoint_every = 500  # steps; 0 = only at the end
  c.keep_last = 2
  c.keep_every = 0  # steps; checkpoints at its multiples are kept for ever, 0 = none
  c.keep_best = True  # by validation loss
  c.save_retries = 0  # failed saves in a row that are tried again at once, before the run ends
  c.tensorboard = True
  c.trackers = ''  # where numbers are shown besides, e.g. 'wandb() | mlflow(uri="sqlite:///m.db")'
  c.report = True

  c.eval = ConfigDict()
  c.eval.every = 500  # steps; 0 = only at the end
  c.eval.batches = 0  # of `batch_tokens` each, 0 = the whole validation set
  c.eval.tasks = ''  # a chain of evals run at the end, e.g. 'lambada(path="x.jsonl")'

  c.sample = ConfigDict()
  c.sample.every = 500  # steps; 0 = only at the end
  c.sample.prompt = '\n'
  c.sample.tokens = 200
  c.sample.rule = 'top_p(p=0.9)'
  return c.lock()


def model() -> ConfigDict:
  """`config.model`."""
  c = ConfigDict()
  c.architecture = 'transformer()'
  c.width = 128
  c.depth = 4  # layers; not used where `stack` is set
  c.stack = ''  # e.g. 'full + (local, full)*3', names from `blocks`
  c.vocab = 0  # rows of the embedding; 0 = the tokenizer's
  c.embed = 'tied()'
  c.position = 'rope()'
  c.embed_norm = ''  # '' = none
  c.final_norm = 'rms_norm()'
  c.init = 'gpt2()'
  c.linear = 'dense()'
  c.cap = 0.0  # soft-cap of the final logits, 0 = none
  c.dropout = 0.0  # on the embeddings; a layer's own is an argument of its residual
  c.dtype = 'float32'  # activations and matrix products
  c.param_dtype = 'float32'
  c.unroll = 1  # layers per step of the scan over layers; a large number unrolls all
  # none, full, dots, names(mixer_out, ffn_out), offload(layer_in), or both of the last two with +
  c.remat = 'none'
  c.blocks = ConfigDict()
  c.blocks.block = block()
  return c


def data() -> ConfigDict:
  """`config.data`."""
  c = ConfigDict()
  c.train = 'shakespeare(split="train")'  # or '0.7*text(path="a.txt") + 0.3*jsonl(path="b.jsonl")'
  c.valid = 'shakespeare(split="valid")'  # '' = no validation
  c.tokenizer = 'bytes()'
  c.length = 128  # tokens in a row
  c.pack = 'concat()'
  c.mask_documents = True  # attention stays within a document
  c.bos = False  # a beginning-of-text token before each document
  c.eos = True  # an end-of-text token after each document
  c.transforms = ''  # a chain, '' = none
  c.mixture = 'static()'
  # Where tokenized text is kept; '' = <workdir>/tokens, or ~/.cache/lmjax/tokens for gs://
  c.cache = ''
  c.threads = 2  # reading ahead
  c.prefetch = 4  # batches read ahead
  return c


def mesh() -> ConfigDict:
  """Sizes of the axes over which devices lie; -1 = all that are left."""
  c = ConfigDict()
  c.replica = 1  # copies of the model; only gradients cross it, for slow networks
  c.stage = 1  # a pipeline of layers; what begins with stage_ is read where it has several
  c.data = 1  # rows of the batch; cuts parameters and optimizer too (ZeRO-3)
  c.expert = 1  # experts, and rows of the batch
  c.sequence = 1  # each row (context parallel); cuts parameters and optimizer too
  c.tensor = 1  # heads, hidden units, the vocabulary
  c.mode = 'auto'  # or explicit: types carry placements
  c.context = 'ring'  # or all_gather: how keys cross `sequence`
  c.stage_micro_batches = 0  # of the pipeline, within a micro-batch of the step; 0 = `stage`
  c.stage_rounds = 1  # of a micro-batch through the stages, each with its share of the layers
  c.stage_remat = False  # a stage keeps what enters it and computes its layers again
  c.stage_gather = 'once'  # a pass, its parameters over `data`; or each: layer by layer, each time
  return c


def block() -> ConfigDict:
  """The parts of one kind of layer."""
  return ConfigDict(
    dict(mixer='gqa(head_dim=32)', ffn='gelu()', norm='rms_norm()', residual='pre()')
  )


# What neither changes tokens nor mathematics.
OUTSIDE_FINGERPRINT = (
  'mesh.*',
  'kernels.*',
  'offload',
  'log_every',
  'recompute_every',
  'watchdog.*',
  'save_retries',
  'checkpoint_every',
  'keep_*',
  'tensorboard',
  'trackers',
  'report',
  'eval.*',
  'sample.*',
  'data.valid',
  'data.cache',
  'data.threads',
  'data.prefetch',
  'model.unroll',
  'model.remat',
)


def named(key: str, make, value=None):
  """make(); its error of the user's kind gets the key (and value) in front, where it has none."""
  try:
    return make()
  except (ValueError, OSError) as e:
    text, shown = specs.cut(str(e), 500), '' if value is None else f'={specs.brief(value)}'
    text = text if text.startswith('config.') else f'config.{key}{shown}: {text}'
    raise ConfigError(text) from e


def folder() -> pathlib.Path:
  """Where recipes can be named from: `configs/` of a checkout, or its copy in the wheel."""
  here = pathlib.Path(__file__).resolve().parent
  return here / '_configs' if (here / '_configs').is_dir() else here.parent / 'configs'


def recipes() -> list[str]:
  return sorted(p.stem for p in folder().glob('*.py') if not p.stem.startswith('_'))


def load(path: str, overrides: list[tuple[str, str]] = ()) -> ConfigDict:
  """Loads `recipe`, `dir/recipe.py` or `dir/recipe.py:argument` and applies overrides, in order."""
  file, _, arg = path.partition(':') if not pathlib.Path(path).is_file() else (path, '', '')
  found = pathlib.Path(file).expanduser() if file.startswith('~/') else pathlib.Path(file)
  if (
    not found.is_file()
    and '/' not in file
    and (folder() / f'{file.removesuffix(".py")}.py').is_file()
  ):
    found = folder() / f'{file.removesuffix(".py")}.py'
  if not found.is_file():
    raise ConfigError(
      f'--config={path}: no such file, nor a recipe of that name{nearest(file, recipes(), ".")} '
      f'Recipes: {", ".join(recipes())}'
    )
  spec = importlib.util.spec_from_file_location(f'lmjax_config_{found.stem}', found)
  if spec is None:
    raise ConfigError(f'--config={path}: a recipe is a .py file with get_config()')
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
  except SyntaxError as e:
    raise ConfigError(f'--config={path}: line {e.lineno}: {e.msg}') from None
  if not hasattr(module, 'get_config'):
    raise ConfigError(f'--config={path}: the file defines no get_config()')
  takes = inspect.signature(module.get_config).parameters
  if arg and not takes:
    raise ConfigError(f'--config={path}: this recipe takes no argument')
  try:
    config = module.get_config(arg) if arg else module.get_config()
  except (KeyError, AttributeError, TypeError) as e:
    raise ConfigError(f'--config={path}: {e.args[0] if e.args else e}') from e
  config = config.copy_and_resolve_references()
  from lmjax import overrides as overrides_lib  # it imports this file

  for key, value in overrides:
    overrides_lib.apply(config, key, value)
  return config.lock()


def resolve(config) -> dict[str, Any]:
  """A plain nested dict: quantities checked, every spec checked and written with all its defaults.

  Raises ConfigError naming the key, the value and what is accepted. Touches no device.
  """
  plain = groups.plain(config.to_dict() if isinstance(config, ConfigDict) else config)
  known = {k for k in _defaults() if not k.startswith('model.blocks.')} | {
    f'model.blocks.{b}.{p}' for b in groups.blocks(plain) for p in BLOCK_PARTS
  }
  for key, value in flat(plain).items():
    if key not in known:
      raise ConfigError(f'config.{specs.shown(key)}: no such key{nearest(key, known)}')
    _set(plain, key, _resolved(key, value))
  for key in sorted(known - set(flat(plain))):
    if not _matches(key, OUTSIDE_FINGERPRINT):
      raise ConfigError(f'config.{key} is missing')
    _set(plain, key, _resolved(key, _defaults()[key]))  # of a run older than this key
  return plain


def refuse_code(config, where: str):
  """Raises ConfigError where a spec names a part outside lmjax: to check it is to import its
  module. Reads the specs alone; for a config of unknown origin, before `resolve`.
  """
  for key, value in flat(groups.plain(config)).items():
    if not isinstance(value, str) or not value.strip() or not is_spec(key, value):
      continue
    try:
      found = specs.outside(value)
    except specs.SpecError as e:
      raise ConfigError(f'{where}: config.{key}={specs.brief(value)}: {e}') from None
    if found:
      raise ConfigError(
        f'{where}: config.{key}={specs.brief(value)} would import code of '
        f'{found[0].partition(":")[0]}; give --allow_code if you trust it'
      )


def _set(tree, key, value):
  *path, last = key.split('.')
  for p in path:
    tree = tree.setdefault(p, {})
  tree[last] = value


def _resolved(key: str, value):
  if key == 'init_from' and isinstance(value, str):
    try:
      part = surgery(value)
    except specs.SpecError as e:
      raise ConfigError(f'config.init_from={specs.brief(value)}: {e}') from None
    return value if part is None else str(part)
  found = kind_of(key)
  if found is None:
    return _ranged(key, value)
  kind, form = found
  if form.endswith('?') and not value:
    return ''
  try:
    if form.startswith('sum'):
      parts = {k: (w, registry.make(kind, c)) for k, (w, c) in specs.weighted(value).items()}
      for name, (weight, _) in parts.items():
        if weight is not None and weight <= 0:
          raise specs.SpecError(f'weight {weight} of {name}: a positive number is expected')
      return ' + '.join(('' if w is None else f'{w!r}*') + str(p) for w, p in parts.values())
    return str(
      registry.make_chain(kind, value) if form.startswith('chain') else registry.make(kind, value)
    )
  except specs.SpecError as e:
    raise ConfigError(f'config.{key}={specs.brief(value)}: {e}') from None


def _ranged(key: str, value):
  kind = _defaults().get(key)
  if kind is not None and type(value) is not type(kind):
    if isinstance(kind, int) and isinstance(value, float) and value.is_integer():
      value = int(value)
    elif isinstance(kind, float) and type(value) is int and value.bit_length() <= 128:
      value = float(value)
    else:
      raise ConfigError(
        f'config.{key}={specs.brief(value)}: {type(kind).__name__} is expected, as in {kind!r}'
      )
  most = registry.LARGEST.get(type(value))
  if most is not None:
    low, high = RANGES.get(key, (-most, most))
    high = most if high is None else high
    if not low <= value <= high:  # nor nan
      upto = '' if high == most and value < most else f' and at most {high}'
      raise ConfigError(f'config.{key}={specs.brief(value)}: at least {low}{upto} is expected')
  return value


@functools.cache
def _defaults() -> dict[str, Any]:
  return flat(default())


def fingerprint(resolved: dict) -> str:
  """16 hex digits over what changes tokens or mathematics; `steps` is left out where the schedule
  allows more of them.
  """
  outside = OUTSIDE_FINGERPRINT
  if registry.make('schedule', resolved['schedule']).fact('extendable'):
    outside += ('steps',)
  return digest(resolved, outside)


def _matches(key: str, patterns: tuple[str, ...]) -> bool:
  return any(fnmatch.fnmatchcase(key, p) for p in patterns)


def digest(resolved: dict, outside: tuple[str, ...]) -> str:
  """16 hex digits over a config without the keys that match the patterns `outside`."""
  kept = {k: v for k, v in flat(resolved).items() if not _matches(k, outside)}
  return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]
