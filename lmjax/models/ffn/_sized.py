"""What feed-forward parts share: the hidden size and the two products."""

import flax.linen as nn

from lmjax.nn import params
from lmjax.parallel import remat
from lmjax.registry import LARGEST


class Sized(nn.Module):
  """`hidden`, or else mult x width, hidden units, rounded up to a multiple."""

  mult: float = 4.0
  hidden: int | None = None
  multiple_of: int = 1
  bias: bool = False

  @staticmethod
  def check(hidden, mult, multiple_of, **_):
    if hidden is not None and hidden < 1:
      raise ValueError(f'hidden={hidden}: a positive size is expected')
    if mult <= 0:
      raise ValueError(f'mult={mult}: a positive factor of the width is expected')
    if multiple_of < 1:
      raise ValueError(f'multiple_of={multiple_of}: a positive size is expected')


def size(part: Sized, width: int) -> int:
  units = part.hidden or max(1, int(part.mult * width))
  units = -(-units // part.multiple_of) * part.multiple_of
  if units > LARGEST[int]:
    raise ValueError(
      f'ffn: {units:.3g} hidden units (mult={part.mult}, multiple_of={part.multiple_of}, '
      f'model.width={width}), at most {LARGEST[int]} are accepted'
    )
  return units


def up(part: Sized, ctx, x, name: str = 'up'):
  """x W, from the width to the hidden size; it may be kept by name between the passes."""
  width = x.shape[-1]
  make = params.dense(ctx, name, dict(embed=width), dict(mlp=size(part, width)), bias=part.bias)
  return remat.tag(make(x), 'ffn_up')


def down(part: Sized, ctx, h, width: int):
  """h W, back to the width; h may be kept by name between the passes."""
  h = remat.tag(h, 'ffn_hidden')
  return params.dense(
    ctx, 'down', dict(mlp=h.shape[-1]), dict(embed=width), role='residual', bias=part.bias
  )(h)
