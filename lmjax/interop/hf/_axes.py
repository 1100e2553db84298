"""One array in two layouts, written as lmjax's axes, an arrow, and the other side's.

  'D H K -> (H K) D'      lmjax has (D, H, K); the other side joins heads and turns the matrix

Names stand for sizes; those in brackets are joined, row-major. Nothing but permutations of numbers:
there and back is bit for bit the same.
"""

import functools
import math

import numpy as np


@functools.cache
def parse(text: str) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
  """(lmjax's axes, groups of them that are the other side's axes)."""
  left, right = text.split(' -> ')
  groups, inside = [], False
  for word in right.replace('(', ' ( ').replace(')', ' ) ').split():
    if word == '(':
      groups.append([])
    elif word != ')':
      groups[-1].append(word) if inside else groups.append([word])
    inside = word == '(' or (inside and word != ')')
  own = tuple(left.split())
  assert sorted(own) == sorted(a for g in groups for a in g), text
  return own, tuple(map(tuple, groups))


def there(shape: tuple[int, ...], text: str) -> tuple[int, ...]:
  """The shape on the other side of an array of this shape."""
  own, groups = parse(text)
  size = dict(zip(own, shape, strict=True))
  return tuple(math.prod(size[a] for a in g) for g in groups)


def outward(x: np.ndarray, text: str) -> np.ndarray:
  """lmjax's array as the other side has it."""
  own, groups = parse(text)
  order = [own.index(a) for g in groups for a in g]
  return x.transpose(order).reshape(there(x.shape, text))


def inward(x: np.ndarray, text: str, shape: tuple[int, ...]) -> np.ndarray:
  """The other side's array as lmjax has it, in lmjax's shape."""
  own, groups = parse(text)
  size = dict(zip(own, shape, strict=True))
  names = [a for g in groups for a in g]
  return x.reshape([size[a] for a in names]).transpose([names.index(a) for a in own])
