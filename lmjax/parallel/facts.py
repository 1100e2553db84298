"""Facts about parameters, declared once where a parameter is made.

A fact names the axes of a parameter, says which of them are contracted with activations, and what
the parameter is for. From it come sharding, initial values, weight-decay masks, matrix views,
learning-rate multipliers and counts.

`Box` carries the fact with the value through `init`. Unlike Linen's partitioned box it adds no
sharding constraint when opened, so the same model runs without a mesh, on an auto mesh and on an
explicit one.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
from flax import struct
from flax.core import meta
import jax

ROLES = ('hidden', 'residual', 'embed', 'position', 'unembed', 'norm', 'bias', 'other')
STACKS = ('layers', 'expert')


@dataclasses.dataclass(frozen=True)
class Fact:
  """Axis names (None for an unnamed axis), the contracted ones, and the role.

  Roles: hidden (a matrix inside a layer), residual (a matrix whose product is added to the residual
    stream), embed, position, unembed, norm, bias, other.

  work: multiply-adds of a token for each entry of a matrix, where they are not 1 (a mask that skips
    some, a factor that is multiplied out).
  """

  names: tuple[str | None, ...]
  inputs: tuple[str, ...] = ()
  role: str = 'hidden'
  work: float = 1.0

  def __post_init__(self):
    assert self.role in ROLES, self.role
    assert set(self.inputs) <= set(self.names), (self.inputs, self.names)

  def axes(self) -> tuple[list[int], list[int], list[int]]:
    """Indices of the stacked, the contracted and the remaining axes."""
    stack = [i for i, n in enumerate(self.names) if n in STACKS and n not in self.inputs]
    ins = [i for i, n in enumerate(self.names) if n in self.inputs]
    outs = [i for i in range(len(self.names)) if i not in stack + ins]
    return stack, ins, outs

  @property
  def is_matrix(self) -> bool:
    _, ins, outs = self.axes()
    return bool(ins and outs) and self.role not in ('norm', 'bias')

  def fans(self, shape) -> tuple[int, int]:
    """(fan-in, fan-out): products of the contracted and of the remaining axes, stacks left out."""
    _, ins, outs = self.axes()
    return math.prod(shape[i] for i in ins), math.prod(shape[i] for i in outs)


class Box(struct.PyTreeNode, meta.AxisMetadata):
  """A value with its fact."""

  value: Any
  fact: Fact = struct.field(pytree_node=False)

  def unbox(self):
    return self.value

  def replace_boxed(self, val):
    return self.replace(value=val)

  def add_axis(self, index: int, params: dict):
    names = list(self.fact.names)
    names.insert(index, params.get(nn.PARTITION_NAME))
    return self.replace(fact=dataclasses.replace(self.fact, names=tuple(names)))

  def remove_axis(self, index: int, params: dict):
    names = list(self.fact.names)
    names.pop(index)
    return self.replace(fact=dataclasses.replace(self.fact, names=tuple(names)))


def is_box(x) -> bool:
  return isinstance(x, Box)


def boxed(init, fact: Fact):
  """An initializer whose result carries `fact`."""
  return lambda key, shape, dtype: Box(init(key, shape, dtype), fact)


def is_fact(x) -> bool:
  return isinstance(x, Fact)


def items(facts_tree, shapes):
  """(keys, fact, shape) of every leaf of two trees of the same structure."""
  found = jax.tree_util.tree_leaves_with_path(facts_tree, is_leaf=is_fact)
  for (path, fact), leaf in zip(found, jax.tree.leaves(shapes), strict=True):
    yield tuple(k.key for k in path), fact, leaf.shape


def unbox(tree):
  return jax.tree.map(lambda x: x.value if is_box(x) else x, tree, is_leaf=is_box)


def facts(tree):
  """The tree of facts of boxed variables; a value without a box gets unnamed axes and the role
  'other'.
  """

  def one(x):
    return x.fact if is_box(x) else Fact((None,) * x.ndim, (), 'other')

  return jax.tree.map(one, tree, is_leaf=is_box)


def as_matrix(x, fact: Fact):
  """(stack..., in, out) and the function that brings an array of that shape back."""
  stack, ins, outs = fact.axes()
  perm = stack + ins + outs
  y = x.transpose(perm)
  k = len(stack)
  rows = math.prod(y.shape[k : k + len(ins)])
  shape, inverse = y.shape, [perm.index(i) for i in range(len(perm))]
  return (y.reshape(*shape[:k], rows, -1), lambda z: z.reshape(shape).transpose(inverse))
