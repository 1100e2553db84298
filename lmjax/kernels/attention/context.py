"""Attention where rows are cut over the mesh axis `sequence` and folded (`parallel.folding`).

Queries stay, keys and values come to them: around a ring, a hop behind each pair of devices (Liu et
al., 2023, arXiv:2310.01889), or gathered at once (Llama Team, 2024, arXiv:2407.21783, section
3.3.2). For each piece of keys j, with running m (largest logit), l (sum) and y,

  m' = max(m, m_j);  l' = l exp(m - m') + l_j exp(m_j - m');  y' = y exp(m - m') + y_j exp(m_j - m')

and the output is y / l. The backward pass makes the logits again from q, k, m and l; the sums of
the gradients of k and v travel on beside them, in float32, and come home after the last device.
Who sees whom is said by positions and segments, so that documents, padding and windows need nothing
of their own. In causal rows two of four pairs of chunks are hidden whatever those say, and left
out: all devices do the same work.

Axes as in `blocks`, on one device; h is the half of its row, low or high, or the whole.
"""

import functools
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from lmjax.kernels.attention import blocks
from lmjax.parallel import folding
from lmjax.parallel import shard

AXIS, TENSOR = folding.AXIS, 'tensor'


class How(NamedTuple):
  """The static arguments. by: ring or all_gather. bias: (positions of queries, of keys) -> the bias
  of all heads (B or 1, H, t, s), or None.
  """

  rule: blocks.Rule
  by: str
  bias: Callable | None

  @property
  def halves(self) -> int:
    """2 where half of the pairs of chunks can be left out."""
    return 2 if self.rule.causal and self.rule.aligned else 1

  def pairs(self, before):
    """[(half of queries, half of keys)] that meet; `before`: whether the keys are of a device
    before, None for the own.
    """
    if self.halves == 1:
      return [(0, 0)]
    if before is None:
      return [(0, 0), (1, 0), (1, 1)]
    same = jnp.where(before, 0, 1)
    return [(1, 0), (same, same)]


class Row(NamedTuple):
  """Queries or keys of a row: one array (B, T, H, K) or two, positions and segments (B, T)."""

  vectors: tuple
  positions: Any
  segments: Any


class Sums(NamedTuple):
  """y (h, B, G, R, t, K), top and total (h, B, G, R, t, 1), float32."""

  y: Any
  top: Any
  total: Any


def attention(
  q, k, v, *, q_positions, k_positions, q_segments, k_segments, rule, bias=None, by='ring'
):
  """(B, T, H, K) from folded q (B, T, H, K) and k, v (B, T, G, K)."""
  tensor = shard.mesh().shape.get(TENSOR, 1)
  if k.shape[2] % tensor:  # each device needs keys for its own heads of queries
    many = next(n for n in range(1, q.shape[2] + 1) if k.shape[2] * n % tensor == 0)
    k, v = jnp.repeat(k, many, axis=2), jnp.repeat(v, many, axis=2)
  one = jnp.ones(q_positions.shape, jnp.int32)
  segments = lambda found: one if found is None else found
  q_where, k_where = (q_positions, segments(q_segments)), (k_positions, segments(k_segments))
  return _attend(How(rule, by, bias), q, (k, v), (q_where, k_where))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(how, q, kv, where):
  return _forward(how, q, kv, where)[0]


def _forward(how, q, kv, where):
  wide, flat, stats = _places(q)
  ins = wide, (wide, wide), (flat, flat)
  run = shard.by_hand(functools.partial(_answers, how), ins, (wide, stats, stats))
  y, top, total = run(q, kv, where)
  return y, (q, kv, where, y, top, total)


def _backward(how, kept, dy):
  wide, flat, stats = _places(dy)
  ins = wide, (wide, wide), (flat, flat), wide, stats, stats, wide
  run = shard.by_hand(functools.partial(_gradients, how), ins, (wide, (wide, wide)))
  return *run(*kept, dy), None


_attend.defvjp(_forward, _backward)


def _places(q):
  """Partition specs of (B, T, H, K), of positions and segments, and of (h, B, G, R, t, 1)."""
  batch, time, heads = shard.spec(('batch', 'time', 'heads'))
  flat = P(batch, time)
  return P(batch, time, heads, None), (flat, flat), P(None, batch, heads, None, time, None)


# ---- on one device


def _answers(how, q, kv, where):
  """(y (B, T, H, K), and of each query its largest logit and the sum of exponentials)."""
  asked, keys = Row((q,), *where[0]), Row(kv, *where[1])
  groups = kv[0].shape[2]

  def meet(sums, before, keys, luggage):
    for a, b in how.pairs(before):
      sums = _put(
        sums, a, _merged(_at(sums, a), _partial(how, _cut(how, asked, a), _cut(how, keys, b)))
      )
    return sums, luggage

  shape = (how.halves, q.shape[0], groups, q.shape[2] // groups, q.shape[1] // how.halves)
  fill = lambda size, value: jnp.full((*shape, size), value, jnp.float32)
  first = Sums(fill(q.shape[-1], 0), fill(1, blocks.FLOOR), fill(1, 0))
  (y, top, total), _ = _visit(how.by, keys, first, (), meet)
  total = jnp.maximum(total, 1e-30)
  y = (y / total).transpose(1, 0, 4, 2, 3, 5).reshape(q.shape).astype(q.dtype)
  return y, top, total


def _gradients(how, q, kv, where, y, top, total, dy):
  """(dq, (dk, dv)), each as what it is the gradient of."""
  keys, groups, rule = Row(kv, *where[1]), kv[0].shape[2], how.rule
  along = jnp.sum(dy.astype(jnp.float32) * y.astype(jnp.float32), axis=-1, keepdims=True)
  asked = Row((q, dy, along), *where[0])

  def meet(dq, before, keys, luggage):
    for a, b in how.pairs(before):
      here, there = _cut(how, asked, a), _cut(how, keys, b)
      whole = (0, here.positions.shape[1]), (0, there.positions.shape[1])
      q, dy, along = (blocks.queries(x, whole[0], groups) for x in here.vectors)
      k, v = (blocks.keys(x, whole[1]) for x in there.vectors)
      row = _at(top, a), 1 / _at(total, a), along
      seen = _facts(how, here, there, q.shape).at(rule, *whole, groups)
      dq_a, dk, dv, _ = blocks.pair(rule, q, k, v, dy, row, seen)
      dq = _put(dq, a, _at(dq, a) + dq_a)
      luggage = _put(luggage, b, jax.tree.map(jnp.add, _at(luggage, b), (dk, dv)))
    return dq, luggage

  def zeros(x, order):
    h, (rows, steps, heads, size) = how.halves, x.shape
    shape = dict(h=h, B=rows, t=steps // h, G=groups, R=heads // groups, K=size)
    return jnp.zeros([shape[a] for a in order], jnp.float32)

  bags = tuple(zeros(x, 'hBGtK') for x in kv)
  dq, found = _visit(how.by, keys, zeros(q, 'hBGKRt'), bags, meet)
  dq = (dq * rule.scale).transpose(1, 0, 5, 2, 4, 3).reshape(q.shape).astype(q.dtype)
  dk, dv = (x.transpose(1, 0, 3, 2, 4).reshape(kv[0].shape) for x in found)
  return dq, ((dk * rule.scale).astype(kv[0].dtype), dv.astype(kv[1].dtype))


def _visit(by, keys, state, luggage, meet):
  """Lets the keys of all devices meet this one.

  meet(state, before, keys, luggage) -> (state, luggage): `before` is None for the own keys, else
  whether they are of a device before this one. luggage: zeros; goes with the keys, and what all
  devices have put in comes home.

  Returns: (state, luggage).
  """
  n, i = folding.size(), jax.lax.axis_index(AXIS)
  of = lambda s: (i - s) % n
  state, own = meet(state, None, keys, luggage)
  if by == 'all_gather':
    every = jax.lax.all_gather(keys, AXIS)

    def step(carry, s):
      state, bags = carry
      state, bag = meet(state, of(s) < i, _at(every, of(s)), luggage)
      return (state, _put(bags, of(s), bag)), None

    bags = jax.tree.map(lambda a: jnp.zeros((n, *a.shape), a.dtype), luggage)
    (state, bags), _ = jax.lax.scan(step, (state, bags), jnp.arange(1, n))
    home = jax.tree.map(lambda a: jax.lax.psum_scatter(a, AXIS), bags)
  else:
    hop = lambda tree: jax.lax.ppermute(tree, AXIS, [(d, (d + 1) % n) for d in range(n)])

    def step(carry, s):  # the next keys are on their way while these are at work
      state, bag, keys = carry
      coming = hop(keys)
      state, bag = meet(state, of(s) < i, keys, bag)
      return (state, hop(bag), coming), None

    carry = state, luggage, hop(keys)
    (state, bag, keys), _ = jax.lax.scan(step, carry, jnp.arange(1, n - 1))
    state, bag = meet(state, of(n - 1) < i, keys, bag)
    home = hop(bag)
  return state, jax.tree.map(jnp.add, own, home)


def _partial(how, asked: Row, keys: Row) -> Sums:
  """Queries that see these keys alone."""
  (q,), (k, v), groups = asked.vectors, keys.vectors, keys.vectors[0].shape[2]
  whole = (0, q.shape[1]), (0, k.shape[1])
  q, k, v = blocks.queries(q, whole[0], groups), blocks.keys(k, whole[1]), blocks.keys(v, whole[1])
  mask, bias = _facts(how, asked, keys, q.shape).at(how.rule, *whole, groups)
  z = blocks.logits(blocks.dot('bgrtk,bgsk->bgrts', q, k), mask, bias, how.rule)[0]
  top = jnp.maximum(jnp.max(z, axis=-1, keepdims=True), blocks.FLOOR)
  p = jnp.exp(z - top)
  y = blocks.dot('bgrts,bgsk->bgrtk', p.astype(v.dtype), v)
  return Sums(y, top, jnp.sum(p, axis=-1, keepdims=True))


def _facts(how, asked: Row, keys: Row, shape) -> blocks.Facts:
  """Who sees whom, and the bias of the heads that this device has; shape: of q (B, G, R, t, K)."""
  bias, own = None, shape[1] * shape[2]
  if how.bias is not None:
    bias = how.bias(asked.positions, keys.positions)
    if bias.shape[1] != own:
      first = jax.lax.axis_index(TENSOR) * own
      bias = jax.lax.dynamic_slice_in_dim(bias, first, own, axis=1)
  return blocks.Facts(asked.positions, keys.positions, asked.segments, keys.segments, bias)


def _merged(a: Sums, b: Sums) -> Sums:
  top = jnp.maximum(a.top, b.top)
  a_by, b_by = jnp.exp(a.top - top), jnp.exp(b.top - top)
  return Sums(a.y * a_by + b.y * b_by, top, a.total * a_by + b.total * b_by)


def _cut(how, row: Row, h) -> Row:
  """Half h of a row, or all of it."""
  size = row.positions.shape[1] // how.halves
  return jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, h * size, size, 1), row)


def _at(tree, i):
  return jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, i, 0, keepdims=False), tree)


def _put(tree, i, new):
  return jax.tree.map(lambda a, b: jax.lax.dynamic_update_index_in_dim(a, b, i, 0), tree, new)
