"""What a config may not ask for, found before a device does any work: sizes that do not divide,
parts that cannot do together what is asked of them.
"""

from typing import Any, Mapping

from lmjax import registry
from lmjax.config import ConfigError
from lmjax.kernels import choice
from lmjax.models import model as model_lib
from lmjax.parallel import offload


def batch_rows(c: dict) -> int:
  """Rows of a global batch. Raises ConfigError where tokens, rows and micro-batches do not
  divide.
  """
  length, tokens, micro = c['data']['length'], c['batch_tokens'], c['micro_batches']
  if tokens % length:
    raise ConfigError(
      f'config.batch_tokens={tokens} does not divide by config.data.length={length}; '
      f'the nearest that do are {max(length, tokens // length * length)} and '
      f'{-(-tokens // length) * length}'
    )
  rows = tokens // length
  if rows % micro:
    raise ConfigError(
      f'config.batch_tokens={tokens} is {rows} rows of config.data.length={length}, which do not '
      'divide into '
      f'config.micro_batches={micro}'
    )
  return rows


def places(c: dict):
  """What runs where. Raises ValueError naming the key."""
  offload.check(c['offload'])
  choice.check(c['kernels'])


def fields(row: Mapping[str, Any], model: model_lib.Model, objective: registry.Part):
  """What rows hold must be honoured by the model and the objective."""
  if 'weights' in row and not objective.fact('weights'):
    raise ConfigError(
      f'config.objective={str(objective)!r} counts every token, and config.data.transforms weighs '
      'them; another objective, or transforms without weights, are expected'
    )
  if 'prefix' in row:
    model.require(
      'prefix',
      'cannot look at a prefix both ways, which a transform of config.data.transforms asks',
    )
  if model.encoders and 'encoder_tokens' not in row:
    raise ConfigError(
      'config.model.architecture has an encoder, and rows have nothing for it to read; a transform '
      'that makes it is expected in config.data.transforms, such as ul2(form="encoder_decoder")'
    )
  if 'encoder_tokens' in row and not model.encoders:
    raise ConfigError(
      'config.data.transforms makes texts for an encoder, and config.model.architecture has none; '
      'encoder_decoder(...) has'
    )


def parts(c: dict, model: model_lib.Model, objective: registry.Part):
  """What parts cannot do together is refused here, by their facts."""
  idle = [n for n, _ in model.blocks if n not in model.used()]
  if idle:
    raise ConfigError(
      f'config.model.blocks.{idle[0]} is not used by config.model.stack={c["model"]["stack"]!r}'
    )
  for segments in (model.segments, *(found for _, found in model.stacks)):
    streams(model, list(dict.fromkeys(n for s in segments for n in s.pattern)))
  linear = model.scheme.linear
  for key, value in linear.args:
    if key in linear.fact('agrees') and value != c[key]:
      raise ConfigError(
        f'config.model.linear: {linear.name}.{key}={value}, but config.{key}={c[key]}; the same is '
        'expected'
      )
  for name, mixer in model.mixers(encoders=True):
    documents(c, name, mixer)
  causal = objective.fact('causal')
  for name, mixer in model.mixers():
    if causal is not None and mixer.fact('causal') != causal:
      need = 'looks only back' if causal else 'looks both ways'
      raise ConfigError(
        f'config.model.blocks.{name}.mixer={mixer}: config.objective={c["objective"]!r} needs a '
        f'mixer that {need} (causal={causal})'
      )
    documents(c, name, mixer)
  rewind(c)
  coupling = [objective, *(dict(model.block(n).context)['ffn'] for n in sorted(model.used()))]
  for part in coupling:
    if part.fact('couples') == 'global' and c['micro_batches'] > 1:
      raise ConfigError(
        f'config.micro_batches={c["micro_batches"]}: the loss of {str(part)!r} couples all rows of '
        'a batch, so accumulation would change it; use 1'
      )


def streams(model: model_lib.Model, names: list[str]):
  """Blocks of one stack must agree on what flows between them."""
  first, *others = names
  for name in others:
    one, two = model.block(first), model.block(name)
    if one.fact('stream') != two.fact('stream'):
      raise ConfigError(
        f'config.model.blocks.{name}.residual={two.name}() wants a stream that is '
        f'{two.fact("stream")}, and {one.name}() of config.model.blocks.{first} in the same stack '
        f'one that is {one.fact("stream")}; blocks of one stack need the same'
      )


def documents(c: dict, name: str, mixer: registry.Part):
  if c['data']['mask_documents'] and not mixer.fact('segments'):
    raise ConfigError(
      f'config.model.blocks.{name}.mixer={mixer} cannot keep documents apart; choose another or '
      'set config.data.mask_documents=false'
    )


def rewind(c: dict):
  """A rewind needs a checkpoint to go back to, and must skip past what it goes back for."""
  bad, every = c['bad_steps'], c['checkpoint_every']
  back = bad['rewind'] + bad['limit']
  if not bad['rewind']:
    return
  if bad['skip'] <= back:
    raise ConfigError(
      f'config.bad_steps.skip={bad["skip"]}: the bad batches would be met again; more than '
      f'rewind + limit = {back} is expected'
    )
  if not every:
    raise ConfigError(
      'config.checkpoint_every=0: config.bad_steps.rewind needs checkpoints to go back to'
    )
  if (c['keep_last'] - 1) * every < back:
    raise ConfigError(
      f'config.keep_last={c["keep_last"]}: a rewind goes back {back} steps (bad_steps.rewind + '
      f'limit), which at config.checkpoint_every={every} takes at least {1 - -back // every}'
    )


def trained(run: Any):
  """What is trained must be trainable, and what samples along the way needs no other model."""
  linear = run.model.scheme.linear
  if not linear.fact('trained'):
    raise ConfigError(
      f'config.model.linear={linear} keeps matrices that are not trained; it is for runs that '
      'python -m lmjax.quantize wrote, to be evaluated and sampled'
    )
  rule = registry.make_chain('decoding', run.config['sample']['rule'])
  for name, part in rule.items():
    if part.fact('models') > 1 and run.config['sample']['tokens']:
      raise ConfigError(
        f'config.sample.rule={run.config["sample"]["rule"]!r}: {name} takes {part.fact("models")} '
        'models, and a run samples from its own; python -m lmjax.sample --with=RUN takes others'
      )
