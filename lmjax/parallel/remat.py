"""What the backward pass keeps: `none` (everything), `full` (nothing), `dots`, or `names(mixer_out,
ffn_out)`.

Parts tag tensors with `tag`; the vocabulary is closed, so that a misspelt name is refused instead
of silently saving nothing.
"""

import re

import jax
from jax.ad_checkpoint import checkpoint_name

from lmjax.specs import brief

NAMES = ('mixer_in', 'qkv', 'mixer_out', 'ffn_in', 'ffn_hidden', 'ffn_out')


def tag(x, name: str):
  assert name in NAMES, name
  return checkpoint_name(x, name)


def policy(text: str):
  """(whether to remat, the policy) of a config string. Raises ValueError."""
  if text in ('none', ''):
    return False, None
  if text == 'full':
    return True, None
  if text == 'dots':
    return True, jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims
  match = re.fullmatch(r'\s*names\(([\w\s,]*)\)\s*', text)
  if not match:
    raise ValueError(
      f'config.model.remat={brief(text)}: none, full, dots or names(...) is expected'
    )
  names = [n.strip() for n in match[1].split(',') if n.strip()]
  for n in names:
    if n not in NAMES:
      raise ValueError(
        f'config.model.remat={brief(text)}: no tensor is named {brief(n)}; there are '
        f'{", ".join(NAMES)}'
      )
  if not names:
    raise ValueError(f'config.model.remat={brief(text)}: name at least one of {", ".join(NAMES)}')
  return True, jax.checkpoint_policies.save_only_these_names(*names)
