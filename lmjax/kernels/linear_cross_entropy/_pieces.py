"""Calls of code that is written for the tokens and words of one device."""

from jax.sharding import PartitionSpec as P

from lmjax.parallel import shard
from lmjax.parallel import vocabulary


def refuses(unembed, tokens) -> str:
  """Why a matrix and tokens of these shapes cannot be cut on this mesh, or ''."""
  if shard.is_explicit():
    return "it needs config.mesh.mode='auto'"
  if not shard.mesh().empty and not vocabulary.divides(unembed, tokens):
    return f'{tokens} tokens and a {unembed} matrix do not divide over the devices'
  return ''


def run(f, x, unembed, bias, *rows, found: tuple[str, ...], grads: bool):
  """(what is found, gradients of x, W and b or None), as f(axes, x, unembed, bias, *rows) gives
  them of one device's pieces; rows: arrays of one number a token. found: `sum` of what is the same
  on all devices, `token` of what is like rows.
  """
  if shard.mesh().empty:
    return f(vocabulary.Axes(), x, unembed, bias, *rows)
  axes = vocabulary.axes(rows[0])
  row, words = P(*axes.place), P(axes.words or None)
  b = None if bias is None else words
  places = dict(sum=P(), token=row)
  made = P(*axes.place, None), P(*words, axes.width or None), b
  by_hand = shard.by_hand(
    lambda *given: f(axes, *given),
    (P(*axes.place, None), P(*words, None), b, *[row] * len(rows)),
    (tuple(places[name] for name in found), made if grads else None),
  )
  return by_hand(x, unembed, bias, *rows)
