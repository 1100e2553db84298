"""The traced half of generation: a prefill, one model as decoding rules see it, and the loop.

A slot is what a model has read; rows may go forward and back by different numbers of tokens. What
an encoder read is in the cache: the loop never runs it again.

Axes: B rows, R = B * streams rows of the caches, P prompt columns, K texts, T new tokens.
"""

import functools
from typing import Any, NamedTuple

from flax import struct
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from lmjax import kinds
from lmjax import registry
from lmjax.decoding import _base
from lmjax.nn import embedding
from lmjax.parallel import shard


class Fixed:
  """An object as a static argument of jit: equal only to itself, since parts compare equal whatever
  they were built with.
  """

  def __init__(self, obj: Any):
    self.obj = obj

  def __hash__(self):
    return id(self.obj)

  def __eq__(self, other):
    return isinstance(other, Fixed) and self.obj is other.obj


class Slot(NamedTuple):
  """positions_R: of the token that comes next. prefix_R: how many first tokens all may see, or None
  where there are none.
  """

  cache: Any
  positions_R: jax.Array
  prefix_R: jax.Array | None = None


@struct.dataclass
class Decoded:
  """texts_BKT: new tokens, the best text first; -1 behind its end, the end token itself is kept.
  scores_BK: what the rule says of each text, -inf where there is none; None for plain rules.
  steps_B: steps of the loop until the row was done, each one pass of the first model.
  """

  texts_BKT: jax.Array
  scores_BK: jax.Array | None
  steps_B: jax.Array


def automatic(f):
  """f, left to the partitioner: caches and gathered windows have no sharding of their own to
  state.
  """
  return shard.automatic(f, PartitionSpec())


def context_limit(architecture) -> int | None:
  """Tokens that the model can see at most: the rows of its position table, or None where positions
  go on without end.
  """
  return getattr(architecture.model.scheme.position, 'length', None)


@functools.partial(jax.jit, static_argnames=('net', 'kind', 'length', 'streams'))
def prefill(
  net: Fixed,
  variables,
  tokens_BP,
  segments_BP,
  positions_BP,
  source: kinds.Text | None = None,
  prefix_B=None,
  packed=None,
  *,
  kind: registry.Part,
  length: int,
  streams: int = 1,
) -> Slot:
  """A slot with room for `length` tokens that holds the given ones, each row `streams` times.

  `kind` is the cache part. source: for the encoder of a model that has one. prefix_B: how many
  first tokens all may see; with it the tokens are given to the last, which they see, and the slot
  is that before it. packed: (rows_B, marks_B) where the given rows hold several prompts each, see
  `padding.packed`.
  """

  def fill(variables, tokens_BP, segments_BP, positions_BP, source, prefix_B, packed):
    batch, columns = tokens_BP.shape
    room = {} if source is None else dict(memory=source.tokens_BS.shape[1])
    cache = net.obj.init_cache(kind, batch, columns if packed else length, **room)
    ctx = kinds.Ctx(
      positions_BT=positions_BP,
      segments_BT=segments_BP,
      prefix_BT=within(prefix_B, positions_BP),
      source=source,
    )
    cache = net.obj.apply(variables, tokens_BP, ctx, cache).cache
    if packed is None:
      slot = Slot(cache, jnp.sum(segments_BP, axis=1), prefix_B)
    else:
      rows_B, marks_B = packed
      sizes_B = jnp.sum(segments_BP[rows_B] == marks_B[:, None], axis=1, dtype=jnp.int32)
      slot, batch = Slot(net.obj.unpack(cache, *packed, length), sizes_B), len(rows_B)
    if prefix_B is not None:
      slot = back(slot, jnp.ones_like(slot.positions_R), 1)
    return slot if streams == 1 else rows(slot, jnp.repeat(jnp.arange(batch), streams))

  given = tokens_BP, segments_BP, positions_BP, source, prefix_B, packed
  return automatic(fill)(variables, *given)


def within(prefix_R, positions_RT):
  """1 for the tokens of the prefix, int32 (R, T), or None without one."""
  return None if prefix_R is None else (positions_RT < prefix_R[:, None]).astype(jnp.int32)


def rows(slot: Slot, rows_R) -> Slot:
  """The slot of these rows. Every array of a cache is (layers, rows, ...)."""
  cache, *others = slot
  return Slot(
    jax.tree.map(lambda a: a[:, rows_R], cache), *jax.tree.map(lambda a: a[rows_R], others)
  )


def back(slot: Slot, dropped_R, most: int) -> Slot:
  """The slot before the last dropped_R tokens of each row, at most `most`. Raises Unsupported where
  a layer's cache cannot go back.
  """
  can = lambda c: hasattr(c, 'back')

  def one(c):
    if not can(c):
      raise kinds.Unsupported('a layer keeps a state that cannot go back to an earlier token')
    return jax.vmap(lambda layer: layer.back(dropped_R, most))(c)

  cache, positions_R, prefix_R = slot
  return Slot(jax.tree.map(one, cache, is_leaf=can), positions_R - dropped_R, prefix_R)


class Steps:
  """One model as decoding rules see it (`kinds.StepFn`). vocab: columns of the logits, or None for
  all that the model has.
  """

  def __init__(self, architecture, variables, vocab: int | None = None):
    self.architecture, self.variables, self.vocab = architecture, variables, vocab

  def __call__(self, slot, tokens_R):
    logits_RTV, slot = self.many(slot, tokens_R[:, None])
    return logits_RTV[:, 0], slot

  def many(self, slot, tokens_RT, real_RT=None):
    cache, positions_R, prefix_R = slot
    steps = tokens_RT.shape[1]
    positions_RT = positions_R[:, None] + jnp.arange(steps)
    outputs = self._read(tokens_RT, positions_RT, real_RT, cache, prefix_R)
    return self._logits(outputs), Slot(outputs.cache, positions_R + steps, prefix_R)

  def alone(self, tokens_RT):
    if self.architecture.model.encoders:
      raise kinds.Unsupported(
        f'{type(self.architecture).__name__} writes only behind a source: a decoding rule that '
        'shows it a few tokens alone is not for it'
      )
    real_RT = tokens_RT >= 0
    positions_RT = jnp.maximum(jnp.cumsum(real_RT, axis=1) - 1, 0)
    return self._logits(self._read(tokens_RT, positions_RT, real_RT, None))[:, -1]

  def mixed(self, slot, tokens_RK, weights_RK):
    part, mixed = self.architecture.model.embed.obj, []

    def mix(call, args, kwargs, context):
      if type(context.module) is not part or context.method_name != '__call__':
        return call(*args, **kwargs)
      x_RKD, *others = call(tokens_RK, *args[1:], **kwargs)
      mixed.append(context.module.name)
      x_RD = jnp.einsum('rk,rkd->rd', weights_RK, x_RKD, preferred_element_type=jnp.float32)
      return x_RD[:, None].astype(x_RKD.dtype), *others

    with nn.intercept_methods(mix):
      out = self(slot, tokens_RK[:, 0])
    if len(mixed) != 1:
      raise kinds.Unsupported(
        f'{type(self.architecture).__name__} embeds tokens {len(mixed)} times a step, where '
        'mixtures of tokens as its input need one'
      )
    return out

  def back(self, slot, dropped_R, most):
    return back(slot, dropped_R, most)

  def rows(self, slot, rows_R):
    return rows(slot, rows_R)

  def _read(self, tokens_RT, positions_RT, real_RT, cache, prefix_R=None):
    """Outputs of tokens, where they are real. What goes beyond the last position is never kept."""
    limit = context_limit(self.architecture)
    positions_RT = jnp.clip(positions_RT, 0, None if limit is None else limit - 1)
    segments = jnp.ones_like(positions_RT) if real_RT is None else real_RT.astype(jnp.int32)
    prefix_RT = within(prefix_R, positions_RT)
    ctx = kinds.Ctx(positions_BT=positions_RT, segments_BT=segments, prefix_BT=prefix_RT)
    return self.architecture.apply(self.variables, jnp.maximum(tokens_RT, 0), ctx, cache)

  def _logits(self, outputs):
    return embedding.logits(outputs)[..., : self.vocab]


@functools.partial(jax.jit, static_argnames=('nets', 'rule', 'vocab'), donate_argnames='slots')
def decode(
  nets: tuple[Fixed, ...],
  variables,
  slots,
  start: _base.Start,
  arrays,
  keys_B,
  done_B,
  limit,
  *,
  rule: str,
  vocab: int | None = None,
) -> tuple[Decoded, tuple]:
  """(what was written, slots): at most `limit` tokens, fewer when every row has met its end.

  Args:
    nets, variables, slots: one for each model. arrays: what the rule loaded. done_B: rows to leave
      out.
  """
  chosen = _base.rule(rule)

  def whole(variables, *inputs):
    step_fns = tuple(Steps(n.obj, v, vocab) for n, v in zip(nets, variables))
    found, caches = loop(chosen, step_fns, *inputs)
    every = lambda a: shard.shard(a, *[None] * a.ndim)  # every process reads all of it
    return jax.tree.map(every, found), caches

  return automatic(whole)(variables, slots, start, arrays, keys_B, done_B, limit)


def loop(chosen, step_fns, slots, start: _base.Start, arrays, keys_B, done_B, limit):
  """`decode` for a rule and step functions of any making."""
  state = chosen.init(step_fns, slots, start, arrays)

  def go_on(carry):
    t, _, done_B, *_ = carry
    return (t < limit) & ~jnp.all(done_B)

  def advance(carry):
    t, state, done_B, counts_B, steps_B, out_BT = carry
    rng = jax.vmap(jax.random.fold_in, (0, None))(keys_B, t)
    state, new = chosen.advance(step_fns, state, rng)
    new_BN = jnp.where(done_B[:, None], -1, new[:, None] if new.ndim == 1 else new)
    out_BT, counts_B, ended_B = write(out_BT, counts_B, new_BN, start.eos, limit)
    ended_B |= chosen.done(state)
    return t + 1, state, done_B | ended_B, counts_B, steps_B + ~done_B, out_BT

  none_B = jnp.zeros(done_B.shape, jnp.int32)
  out_BT = jnp.full((len(done_B), start.length), -1, jnp.int32)
  first = (jnp.zeros((), jnp.int32), state, done_B, none_B, none_B, out_BT)
  _, state, _, _, steps_B, out_BT = jax.lax.while_loop(go_on, advance, first)
  texts = chosen.finish(state)
  texts_BKT, scores_BK = (out_BT[:, None], None) if texts is None else texts
  return Decoded(texts_BKT, scores_BK, steps_B), state.caches


def write(out_BT, counts_B, new_BN, eos, limit):
  """(out, counts, rows that ended) after a step's new tokens, -1 for none: up to the first `eos`,
  and no more than `limit` in all.
  """
  is_eos_BN = new_BN == eos
  after_BN = jnp.cumsum(is_eos_BN, axis=1) > is_eos_BN  # behind an eos
  columns_BN = counts_B[:, None] + jnp.arange(new_BN.shape[1])
  kept_BN = (new_BN >= 0) & ~after_BN & (columns_BN < limit)
  columns_BN = jnp.where(kept_BN, columns_BN, out_BT.shape[1])
  put = lambda row_T, at_N, new_N: row_T.at[at_N].set(new_N, mode='drop')
  counts_B = counts_B + jnp.sum(kept_BN, axis=1, dtype=jnp.int32)
  ended_B = jnp.any(kept_BN & is_eos_BN, axis=1) | (counts_B >= limit)
  return jax.vmap(put)(out_BT, columns_BN, new_BN), counts_B, ended_B
