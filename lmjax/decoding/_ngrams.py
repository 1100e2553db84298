"""Counts of n-grams as a trie in flat arrays: built with numpy, looked up in a traced loop, exact.

Level n (1 ... order) lists the different n-grams in the order of (their first n - 1 tokens, their
last token). Node i of level n has the children starts[i] ... starts[i + 1] of level n + 1, sorted
by token. With c(.) the counts,

  p_g(x | last g tokens) = c(last g tokens, x) / sum_y c(last g tokens, y),  g = 1 ... order - 1

N-grams never cross the border of a document. The file is an .npz (`save`): `order`, `largest` (the
largest id), `tokenizer` (the fingerprint of its tokenizer, '' where unknown) and for each level
`tokens_n` and `counts_n`, int32, and `starts_n` where a level follows. `python -m lmjax.ngrams`
writes one from a token store.
"""

import os
import pathlib
from typing import Any
import zipfile
import zlib

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from lmjax import files

UNREADABLE = (
  AttributeError,
  EOFError,
  KeyError,
  TypeError,
  ValueError,
  zipfile.BadZipFile,
  zlib.error,
)
MOST = 2**31 - 1  # nodes of a level, and counts: int32


@struct.dataclass
class Tables:
  """A tuple for each level; starts and followed (c of what follows) lack the last one."""

  tokens: tuple
  counts: tuple
  starts: tuple
  followed: tuple

  @property
  def order(self) -> int:
    return len(self.tokens)


def build(ids, offsets, order: int = 6) -> dict[str, Any]:
  """The arrays of a file from documents ids[offsets[i]:offsets[i + 1]], without `tokenizer`."""
  if order < 2:
    raise ValueError(f'order={order}: at least 2, for pairs, is expected')
  ids, offsets = np.asarray(ids, np.int64), np.asarray(offsets, np.int64)
  if not len(ids) or ids.min() < 0 or len(ids) > MOST:
    raise ValueError(f'{len(ids)} ids: from 1 to {MOST} ids, none negative, are expected')
  ends = np.repeat(offsets[1:], np.diff(offsets))  # of each token's document
  out = dict(order=np.int64(order), largest=np.int64(ids.max()))
  at, parents, nodes = np.arange(len(ids)), np.zeros(len(ids), np.int64), 1
  for n in range(1, order + 1):
    inside = at + n <= ends[at]
    at, parents = at[inside], parents[inside]
    keys = parents * (ids.max() + 1) + ids[at + n - 1]
    found, node, counts = np.unique(keys, return_inverse=True, return_counts=True)
    if n > 1:
      owners = found // (ids.max() + 1)
      out[f'starts_{n - 1}'] = np.searchsorted(owners, np.arange(nodes + 1)).astype(np.int32)
    out[f'tokens_{n}'] = (found % (ids.max() + 1)).astype(np.int32)
    out[f'counts_{n}'] = counts.astype(np.int32)
    parents, nodes = node.reshape(-1), len(found)
  return out


def save(path, arrays: dict[str, Any], tokenizer: str = ''):
  """Writes what `build` gave, through a rename; `tokenizer` is the fingerprint."""
  path = pathlib.Path(path)
  partial = path.with_name(path.name + '.partial')
  with open(partial, 'wb') as f:
    np.savez(f, **arrays, tokenizer=np.array(tokenizer))
  os.replace(partial, path)


def load(path, vocab: int, tokenizer=None) -> Tables:
  """Raises ValueError naming the file where it is missing, is no such file, was counted with
  another tokenizer, or has ids outside the vocabulary.
  """
  path = files.expanded(path)
  try:
    with np.load(path, allow_pickle=False) as f:
      arrays = {k: f[k] for k in f.files}
    order, largest = int(arrays['order']), int(arrays['largest'])
    levels = {
      k: tuple(arrays[f'{k}_{n}'] for n in range(1, order + (k != 'starts')))
      for k in ('tokens', 'counts', 'starts')
    }
    made = str(arrays['tokenizer'])
    _check(levels)
  except OSError as e:
    raise ValueError(f'ngrams={path!r} cannot be read ({e.strerror or e})') from None
  except UNREADABLE as e:
    why = str(e).split('\n')[0]
    raise ValueError(f'ngrams={path!r} holds no counts of n-grams ({why})') from None
  if tokenizer is not None and made and made != tokenizer.fingerprint():
    raise ValueError(
      f'ngrams={path!r} was counted with another tokenizer ({made[:12]}) than that of the model '
      f'({tokenizer.fingerprint()[:12]})'
    )
  if largest >= vocab:
    raise ValueError(
      f'ngrams={path!r} holds the id {largest}, but the model has {vocab} tokens: it was counted '
      'with another tokenizer'
    )
  sums = (np.concatenate([[0], np.cumsum(c, dtype=np.int64)]) for c in levels['counts'][1:])
  followed = (np.diff(s[b]).astype(np.int32) for s, b in zip(sums, levels['starts']))
  return Tables(
    **{k: tuple(map(jnp.asarray, v)) for k, v in (levels | dict(followed=followed)).items()}
  )


def _check(levels):
  """Raises ValueError where the levels do not fit together."""
  tokens, counts, starts = (levels[k] for k in ('tokens', 'counts', 'starts'))
  if len(tokens) < 2 or any(a.dtype != np.int32 or a.ndim != 1 for v in levels.values() for a in v):
    raise ValueError('levels of int32 arrays are expected')
  for i, (t, c) in enumerate(zip(tokens, counts)):
    if len(t) != len(c) or not len(tokens[0]):
      raise ValueError(f'level {i + 1} has {len(t)} tokens and {len(c)} counts')
  for i, s in enumerate(starts):
    ends = len(s) == len(tokens[i]) + 1 and s[0] == 0 and s[-1] == len(tokens[i + 1])
    if not ends or np.any(np.diff(s) < 0):
      raise ValueError(f'the starts of level {i + 1} do not fit its neighbours')


def probabilities(tables: Tables, tail_C, tokens_N, weights) -> jax.Array:
  """sum_g weights[g - 1] p_g(tokens | last g of tail), (..., N); a context that was never seen
  followed adds nothing.

  Args:
    tail_C: (..., C) the last tokens, -1 for none; C at least len(weights). tokens_N: (..., N).
  """
  total = jnp.zeros(tokens_N.shape)
  for g, weight in enumerate(weights, 1):
    node = _child(tables, 1, None, tail_C[..., -g])
    for level in range(2, g + 1):
      node = _child(tables, level, node, tail_C[..., level - 1 - g])
    children = _child(tables, g + 1, jnp.broadcast_to(node[..., None], tokens_N.shape), tokens_N)
    counts = jnp.where(children < 0, 0, _at(tables.counts[g], children))
    followed = jnp.maximum(_at(tables.followed[g - 1], node), 1)
    total += weight * counts / followed[..., None]
  return total


def _at(array, index):
  """array[index], whatever where the index is -1."""
  if not array.shape[0]:
    return jnp.zeros_like(index)
  return array[jnp.maximum(index, 0)]


def _child(tables: Tables, level: int, parents, tokens):
  """The node of a level below `parents` (-1 for none; None: the root) with this token, or -1."""
  every = tables.tokens[level - 1]
  if parents is None:
    low, high, known = jnp.zeros_like(tokens), jnp.full_like(tokens, len(every)), tokens >= 0
  else:
    starts = tables.starts[level - 2]
    low, high = _at(starts, parents), _at(starts, jnp.where(parents < 0, -1, parents + 1))
    known = (parents >= 0) & (tokens >= 0)
  end = high

  def halve(_, bounds):
    low, high = bounds
    middle = (low + high) // 2
    less = (low < high) & (_at(every, jnp.minimum(middle, len(every) - 1)) < tokens)
    return jnp.where(less, middle + 1, low), jnp.where(less | (low >= high), high, middle)

  low, _ = jax.lax.fori_loop(0, len(every).bit_length(), halve, (low, high))
  found = known & (low < end) & (_at(every, jnp.minimum(low, len(every) - 1)) == tokens)
  return jnp.where(found, low, -1)
