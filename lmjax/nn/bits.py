"""Codes of few bits: which arguments are accepted of those who make them and those who use them."""


def checked(bits: int, group: int | None, per: str) -> None:
  """Raises ValueError where these arguments are not accepted."""
  if not 2 <= bits <= 8:
    raise ValueError(f'bits={bits}: from 2 to 8 is expected')
  if group is not None and group < 1:
    raise ValueError(f'group={group}: a positive number of inputs, or None for all, is expected')
  if group is not None and per == 'tensor':
    raise ValueError(f'group={group}: None is expected where per="tensor"')
