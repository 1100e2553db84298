"""Keeps the last `window` tokens of a sliding-window mixer in a ring; bytes stay flat however long
the text.

Equals the full cache exactly, since a window mask never looks further back. Refused for mixers
without a window. `spare` slots more let decoding go back by as many tokens (drafts that a model
rejects): without them the dropped tokens have overwritten what is in reach again.
"""

from lmjax import kinds
from lmjax.models.caches import _base
from lmjax.registry import register


@register('cache', bounded=True)
def window(*, batch, length, heads, head_dim, dtype, window, spare: int = 0):
  """A ring of the mixer's window."""
  if window is None:
    raise kinds.Unsupported(
      'cache window: the mixer attends to everything; use cache full() or give the mixer a window'
    )
  if spare < 0:
    raise ValueError(f'cache window: spare={spare}: 0 or a number of tokens is expected')
  size = min(length, window + spare)
  return _base.empty(batch, size, heads, head_dim, dtype, ring=True, spare=spare)
