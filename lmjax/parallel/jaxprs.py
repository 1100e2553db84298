"""Traced programs, and the programs that their equations run."""

import math
from typing import Any, Iterator

from jax.extend import core


def multiplied(eqn) -> float:
  """FLOPs of a `dot_general`."""
  (contracted, _), _ = eqn.params['dimension_numbers']
  sizes = [eqn.invars[0].aval.shape[i] for i in contracted]
  return 2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(sizes)


def inner(eqn) -> Iterator[tuple[str, Any]]:
  """(parameter, jaxpr) of the programs that an equation runs."""
  for key, value in eqn.params.items():
    for v in value if isinstance(value, (tuple, list)) else (value,):
      if isinstance(v, core.ClosedJaxpr):
        yield key, v.jaxpr
      elif isinstance(v, core.Jaxpr):
        yield key, v


def equations(jaxpr) -> Iterator[Any]:
  """All equations, those of inner programs behind the one that runs them."""
  for eqn in jaxpr.eqns:
    yield eqn
    for _, body in inner(eqn):
      yield from equations(body)
