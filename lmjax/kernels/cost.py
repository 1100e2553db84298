"""What a Pallas kernel costs, stated where a kernel of a library does not state it.

Compilers see nothing inside of a kernel: what `pallas_call(cost_estimate=...)` says is what they
schedule by, and all that plans know (`lmjax.planning`).
"""

import math
from typing import Callable

import jax
from jax.experimental import pallas as pl
from jax.extend import core

from lmjax.parallel import jaxprs


def stated(f: Callable, cost: Callable) -> Callable:
  """f, with the `pl.CostEstimate` that `cost(equation)` gives in each `pallas_call` inside. What it
  returns is not differentiated: for the functions of a custom gradient.
  """

  def run(*args):
    traced, out = jax.make_jaxpr(f, return_shape=True)(*args)
    program = core.jaxpr_as_fun(core.ClosedJaxpr(_changed(traced.jaxpr, cost), traced.consts))
    return jax.tree.unflatten(jax.tree.structure(out), program(*jax.tree.leaves(args)))

  return run


def _changed(jaxpr, cost):
  def value(v):
    if isinstance(v, core.ClosedJaxpr):
      return core.ClosedJaxpr(_changed(v.jaxpr, cost), v.consts)
    return _changed(v, cost) if isinstance(v, core.Jaxpr) else v

  def one(eqn):
    if eqn.primitive.name == 'pallas_call':
      return eqn.replace(params=eqn.params | dict(cost_estimate=cost(eqn)))
    return eqn.replace(params={k: value(v) for k, v in eqn.params.items()})

  return jaxpr.replace(eqns=list(map(one, jaxpr.eqns)))


def of(eqn) -> pl.CostEstimate:
  """What a `pallas_call` states, else its grid times all that its body multiplies, and its operands
  and results once.
  """
  if eqn.params.get('cost_estimate') is not None:
    return eqn.params['cost_estimate']
  steps = math.prod(n for n in eqn.params['grid_mapping'].grid if isinstance(n, int))
  return pl.CostEstimate(int(steps * products(eqn.params['jaxpr'])), 0, int(moved(eqn)))


def products(jaxpr) -> float:
  """FLOPs of the matrix products of a kernel's body, its branches taken."""
  total = 0.0
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == 'dot_general':
      total += jaxprs.multiplied(eqn)
      continue
    found = [products(j) for _, j in jaxprs.inner(eqn)] or [0.0]
    total += (eqn.params.get('length') or 1) * (
      max(found) if eqn.primitive.name == 'cond' else sum(found)
    )
  return total


def moved(eqn) -> float:
  """Bytes of operands and results."""
  avals = [v.aval for v in (*eqn.invars, *eqn.outvars)]
  return float(sum(math.prod(a.shape) * a.dtype.itemsize for a in avals))
