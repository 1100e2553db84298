"""Parts that hold one other part or chain, `inner`: what it may be, and facts of another shape."""

import dataclasses
from typing import Annotated, Any

import jax

from lmjax import registry
from lmjax.optim import _base, _groups

Inner = Annotated[Any, 'optim']


def check(where: str, inner, passes_on: bool = True):
  """ValueError for an inner part that owns its rate or moves the parameters by itself, or
  one that needs what its holder does not pass on.
  """
  wanted = 'a part that follows the schedule and leaves the parameters to the step'
  if not passes_on:
    wanted += ', and needs gradients and parameters only'
  for part in _groups.flat(inner):
    own = part.fact('owns_lr'), part.fact('gradient_at'), part.fact('retract')
    bad = any(own) or not passes_on and part.fact('needs')
    _base.require(not bad, where, f'{part.name}()', wanted)


def with_facts(inner, facts):
  """The part or chain, built later with these facts; also what it holds itself."""
  if isinstance(inner, registry.Chain):
    return registry.Chain(tuple((k, with_facts(p, facts)) for k, p in inner.items()))
  if not isinstance(inner, registry.Part):
    return inner
  args = tuple((k, with_facts(v, facts)) for k, v in inner.args)
  context = tuple((k, facts if k == 'facts' else v) for k, v in inner.context)
  return dataclasses.replace(inner, args=args, context=context)


def owner(path, known: dict):
  """known's entry for the parameter whose path this path of a state ends with, or None."""
  return next((known[path[n:]] for n in range(len(path) + 1) if path[n:] in known), None)


def pick(like, tree, i: int):
  """The i-th entries of a tree that has a tuple at each leaf of `like`."""
  return jax.tree.map(lambda _, entry: entry[i], like, tree)
