"""What the parts share that keep a matrix as two thin factors."""

import jax


def uniform(fan_in: int):
  """U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
  bound = fan_in**-0.5
  return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


def refuse_whole(where: tuple, name: str, rank: int, fan_in: int, fan_out: int):
  """Raises ValueError, naming the matrix, where factors of this rank could hold any matrix."""
  if rank >= min(fan_in, fan_out):
    raise ValueError(
      f'config.model.linear: {name}.rank={rank} is not accepted: below the sides of every matrix '
      f'is expected, and {"/".join(where) or "this one"} is {fan_in} x {fan_out}'
    )
