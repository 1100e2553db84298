"""What the backward pass finds of the forward pass, `config.model.remat`:

  none               everything is kept on the device
  full               the inputs of layers; all else is computed again
  dots               the inputs of layers, and products of matrices
  names(a, b)        the inputs of layers, and tensors by name; all else is computed again
  offload(c)         tensors by name wait in the host's pinned memory; all else is computed again
  names(a, b) + offload(c)

Parts tag tensors with `tag`; the vocabulary is closed, so that a misspelt name is refused instead
of silently saving nothing. `layer_in` is the input of each layer: kept unless it is offloaded. None
of this changes a loss. On the CPU backend device and host are one memory, and offloading saves
nothing.
"""

import re
from typing import NamedTuple

import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from lmjax.registry import nearest
from lmjax.specs import brief

NAMES = {  # name -> logical axes
  'layer_in': ('batch', 'time', 'width'),
  'mixer_in': ('batch', 'time', 'width'),
  'qkv': ('batch', 'time', 'heads', 'head_dim'),
  'mixer_out': ('batch', 'time', 'width'),
  'ffn_in': ('batch', 'time', 'width'),
  'ffn_up': ('batch', 'time', 'mlp'),
  'ffn_hidden': ('batch', 'time', 'mlp'),
  'ffn_out': ('batch', 'time', 'width'),
}
WORDS = ('none', 'full', 'dots', 'names', 'offload')
FORMS = 'none, full, dots, names(...), offload(...) or names(...) + offload(...)'


class Choice(NamedTuple):
  """A `config.model.remat` as read: none, full, dots or names; the names kept and offloaded."""

  form: str
  kept: tuple[str, ...] = ()
  offloaded: tuple[str, ...] = ()


def tag(x, name: str):
  assert name in NAMES, name
  return checkpoint_name(x, name)


def tag_stream(carry):
  """Tags what enters a layer: of what flows between layers, all that is shaped like the stream."""

  def one(x):
    stream = x.ndim == len(NAMES['layer_in']) and jnp.issubdtype(x.dtype, jnp.inexact)
    return tag(x, 'layer_in') if stream else x

  return jax.tree.map(one, carry)


def read(text: str) -> Choice:
  """Raises ValueError naming the key, the value and what is accepted."""
  if text.strip() in ('none', ''):
    return Choice('none')
  if text.strip() in ('full', 'dots'):
    return Choice(text.strip())
  where, lists = f'config.model.remat={brief(text)}', {}
  for term in text.split('+'):
    match = re.fullmatch(r'\s*(names|offload)\(([\w\s,]*)\)\s*', term)
    if not match:
      word = re.match(r'\w*', term.strip())[0]
      raise ValueError(f'{where}: {FORMS} is expected{nearest(word, WORDS)}')
    if match[1] in lists:
      raise ValueError(f'{where}: {match[1]}(...) stands there twice; once is expected')
    lists[match[1]] = tuple(n.strip() for n in match[2].split(',') if n.strip())
    if not lists[match[1]]:
      raise ValueError(f'{where}: {match[1]}() names no tensor; at least one of {_all()}')
    for n in lists[match[1]]:
      if n not in NAMES:
        raise ValueError(f'{where}: no tensor is named {brief(n)}{nearest(n, NAMES)}; {_all()}')
  kept, offloaded = lists.get('names', ()), lists.get('offload', ())
  both = [n for n in kept if n in offloaded]
  if both:
    raise ValueError(f'{where}: {both[0]} is both kept and offloaded; one of the two is expected')
  return Choice('names', kept, offloaded)


def _all() -> str:
  return f'there are {", ".join(NAMES)}'


def policy(text: str):
  """(whether to remat, the policy) of a config string. Raises ValueError."""
  choice = read(text)
  if choice.form == 'dots':
    return True, jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims
  if choice.offloaded:
    return True, jax.checkpoint_policies.save_and_offload_only_these_names(
      names_which_can_be_saved=choice.kept,
      names_which_can_be_offloaded=choice.offloaded,
      offload_src='device',
      offload_dst='pinned_host',
    )
  if choice.kept:
    return True, jax.checkpoint_policies.save_only_these_names(*choice.kept)
  return choice.form != 'none', None
