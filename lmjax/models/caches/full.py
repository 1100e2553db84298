"""Keeps the keys and values of every token; bytes grow with the length."""

from lmjax.models.caches import _base
from lmjax.registry import register


@register('cache')
def full(*, batch, length, heads, head_dim, dtype, window):
  """Every token. `window` (the mixer's) does not matter: the mask hides what is out of reach."""
  del window
  return _base.empty(batch, length, heads, head_dim, dtype, ring=False)
