"""Tokens on their way to their experts and back, on one device and on meshes.

In training the tokens of a micro-batch are G equal blocks, in order. The tokens of a block are
shuffled and dealt out, equally many to each of G groups; every group is assigned by itself, and
gives each expert as many tokens as any other (up to one). A mesh holds whole groups: dealing out
and the way to the experts are all-to-alls of fixed size, and the result is that of one device.

Otherwise a token goes where its score is highest, so that loads have no bound: tokens are sorted by
expert into tiles, each of one expert; on a mesh every device sees the tokens of all and does those
of its own experts.

A token is in one place of a buffer at most, so that no sum depends on an order.

Axes: B rows, T steps, D width, E experts (L of them on this device), G groups (K of them on this
device), N tokens (of a group), M places of an expert in a group, Z tiles.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from lmjax.kernels.assignment import balanced
from lmjax.models.ffn import _experts
from lmjax.parallel import shard

TILE = 128


class Axes(NamedTuple):
  """Mesh axes over which rows, experts and hidden units lie."""

  rows: tuple[str, ...]
  experts: tuple[str, ...]
  hidden: tuple[str, ...]


class Found(NamedTuple):
  """y: f(x) - x of the chosen expert, 0 for padding. expert: int32, E for padding. rounds: float32,
  of the assignment of each group, or of none.
  """

  y: jax.Array
  expert: jax.Array
  rounds: jax.Array


def mesh_axes() -> Axes:
  found = (shard.spec((name,))[0] for name in ('batch', 'expert', 'mlp'))
  axes = Axes(*((a,) if isinstance(a, str) else a or () for a in found))
  assert set(axes.experts) <= set(axes.rows), axes  # else tokens would travel twice
  return axes


def check(tokens: int, groups: int):
  """Raises ValueError where so many tokens do not make so many groups, or on this mesh."""
  if groups > 1 and tokens % groups**2:
    raise ValueError(
      f'ffn base_layers: groups={groups} is not accepted with {tokens} tokens in a micro-batch: '
      f'each group takes equally many from each of {groups} blocks, hence a multiple of {groups} x '
      f'{groups} tokens is expected'
    )
  mesh, over = shard.mesh(), mesh_axes().rows
  devices = math.prod(mesh.shape[a] for a in over)
  if groups % devices:
    raise ValueError(
      f'ffn base_layers: groups={groups} is not accepted where a batch is cut in {devices} ('
      + ' x '.join(f'config.mesh.{a}={mesh.shape[a]}' for a in over)
      + f'): each piece makes assignments of its own, hence a multiple of {devices} is expected'
    )


def run(x_BTD, scores_BTE, real_BT, weights, specs, *, groups: int | None, key=None) -> Found:
  """Where each token goes, and what its expert makes of it; (B, T, ...).

  Args:
    weights, specs: of `_experts.weights`. groups: independent assignments of equal loads, or None
      for the highest score. key: shuffles the tokens of more than one group.
  """
  axes = mesh_axes()

  def here(x_BTD, scores_BTE, real_BT, key, weights):
    flat = (a.reshape(-1, *a.shape[2:]) for a in (x_BTD, scores_BTE, real_BT))
    go = _highest(axes) if groups is None else _equal(axes, groups, key)
    found = go(*flat, weights)
    like = lambda a: a.reshape(*real_BT.shape, *a.shape[1:])
    return Found(like(found.y), like(found.expert), found.rounds)

  rows = [shard.shard(a, 'batch', *[None] * (a.ndim - 1)) for a in (x_BTD, scores_BTE, real_BT)]
  if shard.mesh().empty:
    return here(*rows, key, weights)
  row = shard.spec(('batch',))
  return jax.shard_map(here, in_specs=(row, row, row, P(), specs), out_specs=Found(row, row, row))(
    *rows, key, weights
  )


def _equal(axes: Axes, groups: int, key):
  """Training: equal loads in each group."""

  def go(x_ND, scores_NE, real_N, weights) -> Found:
    experts = scores_NE.shape[-1]
    size = len(x_ND) // (groups // _devices(axes.rows))
    cut = lambda a: a.reshape(-1, size, *a.shape[1:])
    deal, collect = _shuffled(axes.rows, groups, size, key)
    x_KND, scores_KNE, real_KN = (deal(cut(a)) for a in (x_ND, scores_NE, real_N))
    expert_KN, rounds_K = jax.vmap(balanced)(scores_KNE, real_KN)
    places = -(-size // experts)
    seat_KN = jax.vmap(lambda e: _seats(e, jnp.arange(experts) * places, experts * places))(
      expert_KN
    )
    to_KSD = jax.vmap(lambda x, seat: _seated(x, seat, experts * places))(x_KND, seat_KN)
    to = to_KSD.reshape(-1, experts, places, to_KSD.shape[-1])
    out = _residual(_swapped(to, axes.experts, 1, 0), weights, axes)
    out_KSD = _swapped(out, axes.experts, 0, 1).reshape(to_KSD.shape)
    y_KND = jax.vmap(_back)(out_KSD, seat_KN)
    join = lambda a: collect(a).reshape(-1, *a.shape[2:])
    return Found(join(y_KND), join(expert_KN), rounds_K.astype(jnp.float32))

  return go


def _residual(x_GLMD, weights, axes: Axes):
  """f(x) - x where the second axis says the expert."""
  groups, local, places, width = x_GLMD.shape
  x_LCD = jnp.swapaxes(x_GLMD, 0, 1).reshape(local, -1, width)
  y_LCD = _experts.residual(weights, x_LCD, axes.hidden)
  return jnp.swapaxes(y_LCD.reshape(local, groups, places, width), 0, 1)


def _highest(axes: Axes):
  """Evaluation: the expert of the highest score, whatever the loads."""

  def go(x_ND, scores_NE, real_N, weights) -> Found:
    experts = scores_NE.shape[-1]
    expert_N = jnp.where(real_N, jnp.argmax(scores_NE, axis=-1), experts).astype(jnp.int32)
    every = lambda a: jax.lax.all_gather(a, axes.experts, tiled=True) if axes.experts else a
    local = experts // _devices(axes.experts)
    first = jax.lax.axis_index(axes.experts) * local if axes.experts else 0
    mine = every(expert_N) - first
    y_ND = _tiled(every(x_ND), jnp.where((mine >= 0) & (mine < local), mine, local), weights, axes)
    if axes.experts:  # each token has one owner, the others add zeros
      y_ND = jax.lax.psum_scatter(y_ND, axes.experts, tiled=True)
    return Found(y_ND, expert_N, jnp.zeros_like(scores_NE[:1, 0], jnp.float32))

  return go


def _tiled(x_ND, expert_N, weights, axes: Axes):
  """f(x) - x, 0 for tokens of expert L or above; a tile that is not needed costs nothing."""
  tokens, local = len(x_ND), len(weights[0]['up'])
  size = min(TILE, -(-tokens // local))
  tiles = min(tokens, (tokens + local * (size - 1)) // size)
  loads_L = jnp.sum(expert_N[:, None] == jnp.arange(local), axis=0, dtype=jnp.int32)
  ends_L = jnp.cumsum(-(-loads_L // size))
  seat_N = _seats(expert_N, (ends_L - -(-loads_L // size)) * size, tiles * size)
  owner_Z = jnp.searchsorted(ends_L, jnp.arange(tiles), side='right')

  def tile(args):
    x_CD, owner = args

    def compute(x_CD):
      own = jax.tree.map(lambda w: jax.lax.dynamic_index_in_dim(w, owner, 0), weights)
      return _experts.residual(own, x_CD[None], axes.hidden)[0]

    return jax.lax.cond(owner < local, compute, jnp.zeros_like, x_CD)

  x_ZCD = _seated(x_ND, seat_N, tiles * size).reshape(tiles, size, -1)
  return _back(jax.lax.map(tile, (x_ZCD, owner_Z)).reshape(tiles * size, -1), seat_N)


def _devices(names: tuple[str, ...]) -> int:
  return math.prod(shard.mesh().shape[a] for a in names)


def _swapped(x, names: tuple[str, ...], cut: int, joined: int):
  """All-to-all over devices: axis `cut` is cut over them, axis `joined` grows."""
  return jax.lax.all_to_all(x, names, cut, joined, tiled=True) if names else x


def _shuffled(names: tuple[str, ...], groups: int, size: int, key):
  """(deal, collect): tokens of blocks (K, N, ...) to groups of tokens from all blocks, and back.

  Each of the G blocks gives N / G tokens, drawn at random, to each group.
  """
  if groups == 1:
    return (lambda a: a), (lambda a: a)
  own = groups // _devices(names)
  first = jax.lax.axis_index(names) * own if names else 0
  keys_K = jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(own))
  order_KN = jax.vmap(lambda k: jax.random.permutation(k, size))(keys_K)
  place_KN = jnp.argsort(order_KN, axis=1)
  moved = jax.vmap(lambda a, i: a.at[i].get(unique_indices=True))

  def turn(a_KN):  # (block, group, ...) <-> (group, block, ...)
    a = a_KN.reshape(own, groups, -1, *a_KN.shape[2:])
    return jnp.swapaxes(_swapped(a, names, 1, 0), 0, 1).reshape(a_KN.shape)

  return (lambda a: turn(moved(a, order_KN))), (lambda a: moved(turn(a), place_KN))


def _seats(expert_N, first_E, end: int):
  """int32 (N,): where each token sits, expert by expert in the order of tokens, from first_E on.
  Tokens without one of these experts sit at `end` and beyond, each elsewhere.
  """
  order_N = jnp.argsort(expert_N, stable=True)
  sorted_N = expert_N[order_N]
  first_E = jnp.append(first_E, end)
  rank_N = jnp.arange(len(expert_N)) - jnp.searchsorted(sorted_N, sorted_N)
  return (
    jnp.zeros_like(expert_N)
    .at[order_N]
    .set((first_E[sorted_N] + rank_N).astype(jnp.int32), unique_indices=True)
  )


def _seated(x_ND, seat_N, seats: int):
  """(S, D): tokens on their seats, 0 on empty ones."""
  empty = jnp.zeros_like(x_ND, shape=(seats, x_ND.shape[-1]))
  return empty.at[seat_N].set(x_ND, mode='drop', unique_indices=True)


def _back(y_SD, seat_N):
  """(N, D): what is on each token's seat, 0 for tokens that have none."""
  return y_SD.at[seat_N].get(mode='fill', fill_value=0, unique_indices=True)
