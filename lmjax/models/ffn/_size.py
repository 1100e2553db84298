"""The hidden size of a feed-forward part."""


def check(hidden, mult, multiple_of, **_):
  if hidden is not None and hidden < 1:
    raise ValueError(f'hidden={hidden}: a positive size is expected')
  if mult <= 0:
    raise ValueError(f'mult={mult}: a positive factor of the width is expected')
  if multiple_of < 1:
    raise ValueError(f'multiple_of={multiple_of}: a positive size is expected')


def hidden_size(width: int, hidden, mult: float, multiple_of: int) -> int:
  """`hidden`, or mult x width; rounded up to a multiple."""
  size = hidden or max(1, int(mult * width))
  return -(-size // multiple_of) * multiple_of
