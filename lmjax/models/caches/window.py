"""Keeps the last `window` tokens of a sliding-window mixer in a ring; bytes stay flat however long
the text.

Equals the full cache exactly, since a window mask never looks further back. Refused for mixers
without a window.
"""

from lmjax import kinds
from lmjax.models.caches import _base
from lmjax.registry import register


@register('cache', bounded=True)
def window(*, batch, length, heads, head_dim, dtype, window):
  """A ring of the mixer's window."""
  if window is None:
    raise kinds.Unsupported(
      'cache window: the mixer attends to everything; use cache full() or give the mixer a window'
    )
  return _base.empty(batch, min(length, window), heads, head_dim, dtype, ring=True)
