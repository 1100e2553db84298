"""Parts within parts: each gets the parameters of its group and sees the rest as masked out.

A nested part that asks for `obj_fn` or `sample_fn` differentiates by its own parameters; those of
the other groups stay at their values.
"""

import functools
from typing import Callable, Mapping

import jax
import optax

from lmjax import registry


def build(part) -> optax.GradientTransformationExtraArgs:
  """The transformation of a nested part, or of a chain of them (named, as the outermost is)."""
  if isinstance(part, registry.Chain):
    return optax.named_chain(*((name, build(p)) for name, p in part.items()))
  return optax.with_extra_args_support(part())


def needs(*parts) -> tuple[str, ...]:
  """What nested parts need, each once."""
  every = [p for part in parts for p in flat(part)]
  return tuple(dict.fromkeys(need for p in every for need in p.fact('needs')))


def flat(part) -> list[registry.Part]:
  """The parts of a chain, or the one part."""
  return [p for _, p in part.items()] if isinstance(part, registry.Chain) else [part]


def grouped(
  parts: Mapping[str, optax.GradientTransformationExtraArgs], group: Callable, facts
) -> optax.GradientTransformationExtraArgs:
  """Applies parts[group(fact)] to each parameter; the state is a dictionary by group."""
  names = list(parts)
  groups = jax.tree.map(group, facts)
  assert set(jax.tree.leaves(groups)) <= set(names)

  def only(name, tree):
    return jax.tree.map(lambda g, x: x if g == name else optax.MaskedNode(), groups, tree)

  def whole(name, own, tree):
    return jax.tree.map(lambda g, x, y: x if g == name else y, groups, own, tree)

  def init(params):
    return {name: tx.init(only(name, params)) for name, tx in parts.items()}

  def update(updates, state, params=None, **extra):
    out, new = [], {}
    for name, tx in parts.items():
      own = None if params is None else only(name, params)
      more = dict(extra)
      for key in ('obj_fn', 'sample_fn'):
        if more.get(key) is not None and params is not None:
          more[key] = functools.partial(_through, more[key], lambda p, n=name: whole(n, p, params))
      u, new[name] = tx.update(only(name, updates), state[name], own, **more)
      out.append(u)
    return jax.tree.map(lambda g, *us: us[names.index(g)], groups, *out), new

  return optax.GradientTransformationExtraArgs(init, update)


def _through(fn, whole, params, *args, **more):
  return fn(whole(params), *args, **more)
