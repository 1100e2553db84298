"""A circular pipeline: layers lie apart over the mesh axis `stage`, micro-batches travel through.

With S stages, R rounds and M micro-batches (M >= S), the layers of a segment are S R groups of
equal size; stage s holds the groups s, S + s, ... of rounds 0, 1, ... At time t it works on number
n = t - s: micro-batch n mod M in round n div M. What the last stage gives goes back to the first,
which keeps it until its next round, or for good behind the last. A stage is idle for S - 1 of
M R + S - 1 times, so that rounds shrink what is lost by R (Narayanan et al., 2021,
arXiv:2104.04473).

Parameters are stored in the order of layers, whatever the rounds: checkpoints know no pipeline.
With R > 1 they are brought to their stages once a pass, each device sending and receiving R groups
at most. Those that ZeRO-3 cuts over rows' axes are gathered once a pass too, before the first
micro-batch, and their gradients scattered once behind the last; or for each layer each time.
"""

import dataclasses
import math
from typing import Any, Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np

from lmjax.parallel import jaxprs
from lmjax.parallel import shard

AXIS = 'stage'


def stages() -> int:
  return shard.mesh().shape.get(AXIS, 1)


def run(
  layers: Callable,
  params,
  x,
  rows,
  *,
  groups: int,
  micro: int,
  rounds: int,
  remat: bool = False,
  names: Any = None,
):
  """x behind all layers.

  Args:
    layers: (params of some groups in order, x, rows, index of the first group) -> x. params: leaves
      of `groups` groups, (groups, ...). x: leaves (B, T, ...). rows: what layers know of the rows,
      leaves (B or 1, ...).
    micro: M, which must divide B; rounds: R.
    remat: whether a stage keeps only what enters it, M R + S - 1 times, and computes its layers
      again in the backward pass, where these keep what they keep for one micro-batch at a time.
    names: the logical axes of each parameter, a tuple a leaf, to gather them once a pass; None
      leaves it to the layers.

  Raises ValueError where S R does not divide the groups, M (and with `names` the devices of rows)
  not the rows, or M < S with R > 1.
  """
  n = stages()
  if any(a.shape[0] != groups for a in jax.tree.leaves(params)):
    raise ValueError(
      f'config.mesh.{AXIS}: layers that share their weights cannot lie apart over a pipeline'
    )
  over = () if names is None else tuple(a for a in shard.RULES['batch'] if a in shard.mesh().shape)
  per = _check(n, groups, micro, rounds, jax.tree.leaves(x)[0].shape[0], over)
  one = jax.tree.map(lambda a: a.shape[0] == 1, rows)
  cut = lambda a: _placed(jnp.moveaxis(a.reshape(-1, micro, *a.shape[1:]), 1, 0))
  x_M = jax.tree.map(cut, x)
  rows_M = jax.tree.map(lambda a, whole: a if whole else cut(a), rows, one)
  lie = jax.tree.map(lambda a: P(AXIS), params) if names is None else _cuts(params, names, over)
  work = _kept(layers, rounds, remat)

  def here(params, x_M, rows_M):  # x_M: (1, M, ...), this stage's
    params = params if rounds == 1 else _to_stages(params, n, rounds)
    if names is not None:
      params = jax.tree.map(_joined, params, names, lie)
    s = jax.lax.axis_index(AXIS)

    def turn(x, number):
      m, r = number % micro, number // micro
      known = jax.tree.map(lambda a, whole: a if whole else _at(a, m), rows_M, one)
      return work(params, r, x, known, (r * n + s) * per)

    last = _times(turn, jax.tree.map(lambda a: a[0], x_M), n, micro, rounds)
    return jax.tree.map(lambda a: a[None], last)

  row = over or None
  given = P(AXIS, None, row), jax.tree.map(lambda whole: P() if whole else P(None, row), one)
  ran = jax.shard_map(
    here,
    in_specs=(lie, *given),
    out_specs=P(AXIS, None, row),
    axis_names={AXIS, *over},
    check_vma=False,
  )(params, jax.tree.map(_for_all, x_M), rows_M)
  joined = lambda a, like: _placed(jnp.moveaxis(a, 0, 1).reshape(like.shape), lead=())
  return jax.tree.map(lambda a, like: joined(_of_first(a), like), ran, x)


def _at(tree, i):
  return jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, i, 0, False), tree)


def _times(turn: Callable, x_M, n: int, micro: int, rounds: int):
  """What the first stage has of all micro-batches behind all rounds, (M, ...); others have what is
  of no use. turn: what this stage makes of x, at its turn by number.
  """
  s = jax.lax.axis_index(AXIS)
  way = [(d, (d + 1) % n) for d in range(n)]
  put = lambda tree, part, i: jax.tree.map(
    lambda a, b: jax.lax.dynamic_update_index_in_dim(a, b, i, 0), tree, part
  )

  def tick(carry, t):
    kept_M, came = carry
    # What arrived is of the last stage only where this is the first.
    back = t - n
    came_back = jax.tree.map(
      lambda a, b: jnp.where(back >= 0, b, a), _at(kept_M, back % micro), came
    )
    kept_M = put(kept_M, came_back, back % micro)
    number = jnp.clip(t - s, 0, micro * rounds - 1)  # idle stages repeat a neighbour's work
    given = jax.tree.map(lambda a, b: jnp.where(s == 0, a, b), _at(kept_M, t % micro), came)
    out = turn(given, number)
    return (kept_M, jax.tree.map(lambda a: jax.lax.ppermute(a, AXIS, way), out)), None

  start = (x_M, _at(x_M, 0))
  (kept_M, came), _ = jax.lax.scan(tick, start, jnp.arange(micro * rounds + n - 1))
  return put(kept_M, came, (micro * rounds - 1) % micro)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Static:
  """What is no array, among arrays."""

  value: Any


def _kept(layers: Callable, rounds: int, remat: bool) -> Callable:
  """(params of all rounds, round, x, rows, first) -> x, which keeps no parameters for the backward
  pass: they are the same every time, and each time would keep its own copy. Rows have no gradient.
  """
  take = lambda params, r: params if rounds == 1 else _at(params, r)
  if remat or rounds == 1:
    run = lambda params, r, *rest: layers(take(params, r), *rest)
    return jax.checkpoint(run, prevent_cse=False) if remat else run  # inside of a loop

  @jax.custom_vjp
  def run(params, r, x, rows, first):
    return layers(take(params, r), x, rows, first)

  def forward(params, r, x, rows, first):
    own = take(params, r)
    y, pull = jax.vjp(lambda own, x: layers(own, x, rows, first), own, x)
    leaves, tree = jax.tree.flatten(pull)
    number = {id(p): i for i, p in enumerate(jax.tree.leaves(own))}
    at = [number.get(id(a)) for a in leaves]  # parameters are taken again
    rest = [a for a, i in zip(leaves, at) if i is None]
    return y, (params, r, rest, _Static((tree, tuple(at))))

  def backward(kept, dy):
    params, r, rest, static = kept
    (tree, at), rest, own = static.value, iter(rest), jax.tree.leaves(take(params, r))
    pull = jax.tree.unflatten(tree, [next(rest) if i is None else own[i] for i in at])
    d_own, dx = pull(dy)
    d = jax.tree.map(lambda a, g: jnp.zeros_like(a).at[r].set(g), params, d_own)
    return d, None, dx, None, None

  run.defvjp(forward, backward)
  return run


def _cuts(params, names, over):
  """How each parameter lies over the stages and over these axes."""

  def one(a, names):
    found = map(shard.axes_of, shard.spec(names, shape=a.shape))
    return P(*(tuple(x for x in e if x == AXIS or x in over) or None for e in found))

  return jax.tree.map(one, params, names)


def _joined(a, names, spec: P):
  """A parameter of these names, perhaps with an axis of rounds before, with what other devices have
  of it of the axes that ZeRO-3 cuts; its gradient is added up over them, and each takes its part.
  `spec` is of the axes that this code has charge of.

  Written for the pieces of each device: the partitioner, which has charge of the other axes here,
  would make an operand of a collective whole.
  """
  lead = (None,) * (a.ndim - len(names))
  names, lies = (*lead, *names), shard.spec((*lead, *names), shape=a.shape)

  def here(a):
    for i, (name, *axes) in enumerate(zip(names, (*lead, *spec), lies, strict=True)):
      axes = tuple(x for e in axes for x in shard.axes_of(e))
      if name in shard.GATHERED and axes:
        a = jax.lax.all_gather(a, axes, axis=i, tiled=True)
    return a

  out = shard.spec(names, gathered=True, shape=a.shape)
  return shard.by_hand(here, (lies,), out)(a)


# Sums over stages are written for the pieces of each device too. (XLA:CPU ends the process at sums
# in bfloat16 that leave some axes to the partitioner.)


@jax.custom_vjp
def _for_all(x_M):
  """(M, B, ...) -> (S, M, B, ...): each stage has its own. The gradients of all are added up."""
  lie = _lie(x_M)
  return shard.by_hand(lambda a: a[None], (lie,), P(AXIS, *lie))(x_M)


def _from_all(_, g):
  lie = _lie(g[0])
  summed = lambda a: jax.lax.psum(a[0], AXIS)
  return (shard.by_hand(summed, (P(AXIS, *lie),), lie)(g),)


_for_all.defvjp(lambda x_M: (_for_all(x_M), None), _from_all)


@jax.custom_vjp
def _of_first(a_S):
  """(S, M, B, ...), one of each stage -> (M, B, ...), that of the first, for all. The gradient is
  the same on all stages, and the first takes it; transposing the sum would add up all of theirs.
  """
  lie = _lie(a_S[0])
  sent = lambda a: jax.lax.psum(jnp.where(jax.lax.axis_index(AXIS) == 0, a[0], 0), AXIS)
  return shard.by_hand(sent, (P(AXIS, *lie),), lie)(a_S)


def _to_first(_, g):
  lie = _lie(g)
  kept = lambda g: jnp.where(jax.lax.axis_index(AXIS) == 0, g, 0)[None]
  return (shard.by_hand(kept, (lie,), P(AXIS, *lie))(g),)


_of_first.defvjp(lambda a_S: (_of_first(a_S), None), _to_first)


def _lie(x_M) -> P:
  """How (M, B, T, ...) lies on the mesh; rows that do not divide are whole on each device."""
  row = None if x_M.shape[1] % shard.sharing(shard.mesh().shape) else 'batch'
  return shard.spec((None, row, 'time', *[None] * x_M.ndim)[: x_M.ndim], shape=x_M.shape)


def passes(jaxpr) -> bool:
  """Whether a traced program sends anything from stage to stage."""
  return any(
    e.primitive.name == 'ppermute' and AXIS in e.params['axis_name']
    for e in jaxprs.equations(jaxpr)
  )


def _check(n: int, groups: int, micro: int, rounds: int, rows: int, over: tuple[str, ...]) -> int:
  """Groups that a stage does at once."""
  if groups % (n * rounds):
    raise ValueError(
      f'config.mesh.stage={n} x config.mesh.stage_rounds={rounds} do not divide the {groups} '
      'groups of layers of a segment'
    )
  if rows % micro:
    raise ValueError(
      f'config.mesh.stage_micro_batches={micro} does not divide the {rows} rows of a micro-batch'
    )
  pieces = math.prod(shard.mesh().shape[a] for a in over)
  if rows % (micro * pieces):
    raise ValueError(
      f'config.mesh.stage_micro_batches={micro}: the {rows // micro} rows of each do not divide '
      f'over {pieces} devices'
    )
  if rounds > 1 and micro < n:
    raise ValueError(
      f'config.mesh.stage_micro_batches={micro}: with config.mesh.stage_rounds={rounds} at '
      f'least as many as stages, {n}, are expected'
    )
  return groups // (n * rounds)


def _placed(a, lead=(None,)):
  """Rows and time where they belong."""
  names = (*lead, 'batch', 'time', *[None] * a.ndim)[: a.ndim]
  return shard.shard(a, *names)


def _to_stages(params, n: int, rounds: int) -> Any:
  """(groups / S, ...) in the order of layers -> (R, groups / (S R), ...) of the rounds of this
  stage.
  """
  split = jax.tree.map(lambda a: a.reshape(rounds, -1, *a.shape[1:]), params)
  sent, kept, ways = routes(n, rounds)
  s = jax.lax.axis_index(AXIS)

  def move(a):
    coming = [
      jax.lax.ppermute(jax.lax.dynamic_index_in_dim(a, sent[j][s], 0, False), AXIS, ways[j])
      for j in range(rounds)
    ]
    return jnp.stack(coming)[kept[s]]

  sent, kept = jnp.asarray(sent), jnp.asarray(kept)
  return jax.tree.map(move, split)


def routes(n: int, rounds: int):
  """(which of its R sets each stage sends at each of R times, (R, S); when each stage received the
  set of each round, (S, R); from which stage to which, at each time).

  Stage s has sets s R + k for k < R, and needs sets r S + s for r < R. Sources that would send to
  one stage at once begin with another k.
  """
  apart = n // math.gcd(n, rounds)
  sent, kept, ways = np.zeros((rounds, n), int), np.zeros((n, rounds), int), []
  for j in range(rounds):
    way = []
    for s in range(n):
      k = (j + s // apart) % rounds
      group = s * rounds + k
      sent[j, s] = k
      kept[group % n, group // n] = j
      way.append((s, group % n))
    assert len({d for _, d in way}) == n, way
    ways.append(way)
  return sent, kept, ways
