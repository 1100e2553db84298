"""What is refused before anything of a generation is compiled."""

import functools
from typing import Any, Sequence

import jax
import jax.numpy as jnp

from lmjax import decode_loop
from lmjax import kinds
from lmjax import registry


def check(architecture, prompts: Sequence[kinds.Prompt], max_tokens: int):
  """Raises ValueError or Unsupported where these prompts cannot be continued by so many tokens."""
  architecture.model.require(
    'cache', 'cannot decode token by token, so this model cannot generate text'
  )
  if max_tokens < 1:
    raise ValueError(f'max_tokens={max_tokens}: at least 1 is expected')
  limit = decode_loop.context_limit(architecture)
  for i, p in enumerate(prompts):
    layout(architecture.model, p)
    n = len(p.text)
    for text in (p.text, *([] if p.source is None else [p.source])):
      ids(architecture.model.vocab, text, i)
    if limit is not None and n + max_tokens > limit + 1:  # the last token is never fed
      raise ValueError(
        f'prompt {i} has {n} tokens and {max_tokens} more are asked for, but the model has '
        'positions for '
        f'{limit}: shorten the prompt or ask for at most {max(0, limit + 1 - n)} tokens'
      )
    if limit is not None and len(p.source or ()) > limit:
      raise ValueError(
        f'the source of prompt {i} has {len(p.source)} tokens, but the model has positions for '
        f'{limit}: shorten the prompt'
      )


def ids(vocab: int, text: Sequence[int], i: int):
  """Raises ValueError where a text of prompt i is empty or holds what is no token."""
  if not len(text):
    raise ValueError(f'prompt {i} is empty: at least one token is needed to continue from')
  if min(text) < 0 or max(text) >= vocab:
    raise ValueError(f'prompt {i} holds a token outside 0 ... {vocab - 1}')


def layout(model: Any, prompt: kinds.Prompt):
  """Raises Unsupported where a model cannot read a prompt of this layout."""
  if model.encoders and prompt.source is None:
    raise kinds.Unsupported(
      'config.model.architecture reads a source, and the prompt has none: a `kinds.Prompt`, as the '
      'transform makes it that made the rows, is expected'
    )
  if prompt.source is not None and not model.encoders:
    raise kinds.Unsupported(
      'the prompt has a source for an encoder, and config.model.architecture has none'
    )
  if prompt.prefix:
    model.require('prefix', 'cannot look at a prefix both ways, which the prompt asks')


def models(chain: registry.Chain, architectures: Sequence[Any]):
  """Raises Unsupported where a rule takes another number of models, or asks of one what it cannot;
  ValueError where their vocabularies differ.
  """
  parts = [part for _, part in chain.items()]
  wanted = max(part.fact('models') for part in parts)
  if len(architectures) != wanted:
    words = f'{wanted} model' + 's' * (wanted > 1)
    were = '1 was' if len(architectures) == 1 else f'{len(architectures)} were'
    raise kinds.Unsupported(
      f'decoding {parts[0].name} takes {words}, {were} given; those beside the model itself are '
      '`others`, on the command line --with=RUN for each'
    )
  for other in architectures[1:]:
    if other.model.vocab != architectures[0].model.vocab:
      raise ValueError(
        f'the models have {architectures[0].model.vocab} and {other.model.vocab} tokens: decoding '
        f'{parts[0].name} needs one tokenizer for all'
      )
  for part in parts if any(part.fact('rewinds') for part in parts) else ():
    for architecture in architectures:
      for name, mixer in architecture.model.mixers():
        if mixer.fact('recurrent'):
          raise kinds.Unsupported(
            f'config.model.blocks.{name}.mixer={mixer} keeps a state that cannot go back to an '
            f'earlier token, which decoding {part.name} asks for'
          )


def can_pack(architecture, kind: registry.Part) -> bool:
  """Whether several prompts can be read in one row."""

  def trial(architecture):
    row = jnp.zeros(1, jnp.int32)
    return architecture.unpack(architecture.init_cache(kind, 1, 1), row, row, 1)

  if not hasattr(architecture, 'unpack'):
    return False
  try:
    jax.eval_shape(functools.partial(trial, architecture))
  except kinds.Unsupported:
    return False
  return True


def can_go_back(architectures: Sequence[Any], kind: registry.Part, length: int, most: int):
  """Raises Unsupported where caches of this kind cannot go back by `most` tokens."""

  def trial(architecture):
    row = jnp.zeros(1, jnp.int32)
    slot = decode_loop.Slot(architecture.init_cache(kind, 1, length), row)
    return decode_loop.back(slot, row, most)

  for architecture in architectures:
    jax.eval_shape(functools.partial(trial, architecture))
