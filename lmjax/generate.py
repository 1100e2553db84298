"""Text from a model: ragged prompts in one batch, a prefill, then one compiled loop over tokens
with a cache.

Prompts are padded on the left with segment 0, so that all rows end in the same column; the position
of a row's first real token is 0. All but the last token of each prompt go through `prefill`; the
loop feeds the last one and what follows. A row gives the same alone and in any batch: rows share no
key. Shapes are rounded up (rows and prompts to powers of two, new tokens to a multiple of 64), so
that few programs are compiled, once for each architecture in a process.

Axes: B rows, P prompt columns, T new tokens.
"""

import functools
import math
from typing import Any, Sequence
import zlib

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np

from lmjax import kinds
from lmjax import registry
from lmjax.decoding import _base
from lmjax.nn import embedding
from lmjax.parallel import shard

SMALLEST_PROMPT, TOKENS_MULTIPLE = 16, 64


def power_of_two(n: int, least: int = 1) -> int:
  """`least` times the smallest power of two that makes at least n."""
  return least << max(0, -(-n // least) - 1).bit_length()


def left_padded(
  prompts: Sequence[Sequence[int]], columns: int, rows: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(tokens, segments, positions), each int32 (rows, columns): prompts at the right end, segment 0
  before them and in spare rows.
  """
  tokens = np.zeros((rows, columns), np.int32)
  segments, positions = np.zeros_like(tokens), np.zeros_like(tokens)
  for r, p in enumerate(prompts):
    if len(p):
      tokens[r, -len(p) :], segments[r, -len(p) :], positions[r, -len(p) :] = (
        p,
        1,
        np.arange(len(p)),
      )
  return tokens, segments, positions


def context_limit(architecture) -> int | None:
  """Tokens that the model can see at most: the rows of its position table, or None where positions
  go on without end.
  """
  return getattr(architecture.model.scheme.position, 'length', None)


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


def automatic(f):
  """f, run with the partitioner in charge also on an explicit mesh: caches and gathered windows
  have no sharding of their own to state.
  """
  if not shard.is_explicit():
    return f
  return jax.sharding.auto_axes(f, out_sharding=PartitionSpec())


def least_rows() -> int:
  """Rows that a batch has at least: what the current mesh divides it over."""
  mesh = shard.mesh()
  return math.prod(mesh.shape.get(a, 1) for a in shard.RULES['batch']) if not mesh.empty else 1


@functools.partial(jax.jit, static_argnames=('net', 'kind', 'length'))
def prefill(
  net: Fixed, variables, tokens_BP, segments_BP, positions_BP, *, kind: registry.Part, length: int
):
  """A cache for `length` tokens that holds the given ones. `kind` is the cache part."""

  def fill(variables, tokens_BP, segments_BP, positions_BP):
    cache = net.obj.init_cache(kind, tokens_BP.shape[0], length)
    ctx = kinds.Ctx(positions_BT=positions_BP, segments_BT=segments_BP)
    return net.obj.apply(variables, tokens_BP, ctx, cache).cache

  return automatic(fill)(variables, tokens_BP, segments_BP, positions_BP)


def step(architecture, variables, slot, tokens_B):
  """(logits_BV, slot) after one more token in each row; a slot is (cache, positions_B)."""
  cache, positions_B = slot
  ctx = kinds.Ctx(
    positions_BT=positions_B[:, None], segments_BT=jnp.ones_like(positions_B)[:, None]
  )
  outputs = architecture.apply(variables, tokens_B[:, None], ctx, cache)
  return embedding.logits(outputs)[:, 0], (outputs.cache, positions_B + 1)


@functools.partial(jax.jit, static_argnames=('net', 'rule', 'tokens'), donate_argnames='slot')
def decode(
  net: Fixed, variables, slot, last_B, keys_B, done_B, limit, eos, *, rule: str, tokens: int
):
  """(new tokens (B, tokens), slot): at most `limit` tokens, fewer when every row has met `eos` (-1
  for none).

  Columns after a row's end, and those that were never reached, are -1; the end token itself is
  kept.
  """
  chosen = _base.rule(rule)

  def loop(variables, slot, last_B, keys_B, done_B, limit, eos):
    step_fns = (functools.partial(step, net.obj, variables),)

    def go_on(carry):
      t, _, done_B, _ = carry
      return (t < limit) & ~jnp.all(done_B)

    def advance(carry):
      t, state, done_B, out_BT = carry
      state, new_B = chosen.advance(
        step_fns, state, jax.vmap(jax.random.fold_in, (0, None))(keys_B, t)
      )
      out_BT = out_BT.at[:, t].set(jnp.where(done_B, -1, new_B))
      return t + 1, state, done_B | (new_B == eos), out_BT

    out_BT = jnp.full((last_B.shape[0], tokens), -1, jnp.int32)
    first = (jnp.zeros((), jnp.int32), _base.State((slot,), last_B), done_B, out_BT)
    _, state, _, out_BT = jax.lax.while_loop(go_on, advance, first)
    return shard.shard(out_BT, None, None), state.caches[0]  # every process reads all of it

  return automatic(loop)(variables, slot, last_B, keys_B, done_B, limit, eos)


def row_keys(prompts: Sequence[Sequence[int]], seed: int):
  """A key for each row from the seed, the prompt and how often the prompt came before, hence not
  from the rest of the batch.
  """
  seen: dict[bytes, int] = {}
  marks, turns = [], []
  for p in prompts:
    data = np.asarray(p, np.int64).tobytes()
    marks.append(zlib.crc32(data))
    turns.append(seen.setdefault(data, 0))
    seen[data] += 1
  return _folded(seed, np.asarray(marks, np.uint32), np.asarray(turns, np.uint32))


@jax.jit
def _folded(seed, marks_B, turns_B):
  one = lambda mark, turn: jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), mark), turn)
  return jax.vmap(one)(marks_B, turns_B)


def check(architecture, prompts: Sequence[Sequence[int]], max_tokens: int):
  """Raises ValueError or Unsupported where these prompts cannot be continued by so many tokens."""
  architecture.model.require(
    'cache', 'cannot decode token by token, so this model cannot generate text'
  )
  if max_tokens < 1:
    raise ValueError(f'max_tokens={max_tokens}: at least 1 is expected')
  limit, vocab = context_limit(architecture), architecture.model.vocab
  for i, p in enumerate(prompts):
    if not len(p):
      raise ValueError(f'prompt {i} is empty: at least one token is needed to continue from')
    if min(p) < 0 or max(p) >= vocab:
      raise ValueError(f'prompt {i} holds a token outside 0 ... {vocab - 1}')
    if limit is not None and len(p) + max_tokens > limit + 1:  # the last token is never fed
      raise ValueError(
        f'prompt {i} has {len(p)} tokens and {max_tokens} more are asked for, but the model has '
        'positions for '
        f'{limit}: shorten the prompt or ask for at most {max(0, limit + 1 - len(p))} tokens'
      )


def generate(
  architecture,
  variables,
  prompts: Sequence[Sequence[int]],
  *,
  max_tokens: int,
  rule: str = 'greedy()',
  seed: int = 0,
  eos: int | None = None,
  cache: str = 'full()',
) -> list[np.ndarray]:
  """New tokens for each prompt, int32, without the end token.

  Args:
    architecture: with `model`; variables: its collections. prompts: ids, each at least one.
    max_tokens: new tokens at most. rule: decoding spec, e.g. 'top_k(k=40) | temperature(t=0.8)'.
      eos: the token that ends a row.
    cache: cache spec; 'window()' keeps memory flat for models whose every mixer has a window.

  Raises:
    ValueError: no prompt or an empty one, ids outside the vocabulary, more tokens than the model
      has positions.
    Unsupported: a mixer that cannot decode, a cache that does not suit it. SpecError: `rule` or
      `cache` cannot be read.
  """
  if not len(prompts):
    return []
  rule, kind = str(registry.make_chain('decoding', rule)), registry.make('cache', cache)
  check(architecture, prompts, max_tokens)
  limit = context_limit(architecture)
  columns = power_of_two(max(map(len, prompts)) - 1, SMALLEST_PROMPT)
  columns = columns if limit is None else min(columns, limit)
  tokens = -(-max_tokens // TOKENS_MULTIPLE) * TOKENS_MULTIPLE
  rows = power_of_two(len(prompts), least_rows())
  spare = rows - len(prompts)
  cached = prefill(
    Fixed(architecture),
    variables,
    *left_padded([p[:-1] for p in prompts], columns, rows),
    kind=kind,
    length=columns + tokens,
  )
  positions_B = np.array([len(p) - 1 for p in prompts] + [0] * spare, np.int32)
  last_B = np.array([p[-1] for p in prompts] + [0] * spare, np.int32)
  keys_B = row_keys([*prompts, *[[]] * spare], seed)
  out_BT, _ = decode(
    Fixed(architecture),
    variables,
    (cached, jnp.asarray(positions_B)),
    last_B,
    keys_B,
    np.arange(rows) >= len(prompts),
    max_tokens,
    -1 if eos is None else eos,
    rule=rule,
    tokens=tokens,
  )
  return [_trim(row, eos) for row in np.asarray(out_BT)[: len(prompts)]]


def _trim(row, eos):
  row = row[row >= 0]
  return row[:-1] if eos is not None and len(row) and row[-1] == eos else row


def new_text(tokenizer, prompt: Sequence[int], new: Sequence[int]) -> str:
  """The text that `new` adds to the prompt: joined first, since a tokenizer may treat the start of
  a text apart.
  """
  before, whole = tokenizer.decode(prompt), tokenizer.decode([*prompt, *new])
  return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(new)


def prompt_ids(tokenizer, text: str, bos: bool) -> list[int]:
  """The ids of a prompt, a beginning-of-text token in front where asked for or where there is
  nothing else to start from.
  """
  ids = [int(i) for i in tokenizer.encode(text)]
  start = tokenizer.bos if tokenizer.bos is not None else tokenizer.eos
  if not ids and start is None:
    raise ValueError(
      'the prompt is empty, and the tokenizer has neither a bos nor an eos token to start from'
    )
  return [start, *ids] if start is not None and (bos or not ids) else ids


def sample_texts(
  run: Any, variables, prompts: Sequence[str], *, max_tokens: int, rule: str, seed: int = 0
) -> list[str]:
  """What the model of a run writes after each prompt, ended by the tokenizer's eos.

  Prompts begin as the run's documents do (`data.bos`). Where the model has fewer positions than
  prompt and `max_tokens` need, less is written. Raises as `generate` does.
  """
  ids = [prompt_ids(run.tokenizer, p, run.config['data']['bos']) for p in prompts]
  limit = context_limit(run.architecture)
  if limit is not None:
    max_tokens = max(1, min(max_tokens, limit + 1 - max(map(len, ids))))
  new = generate(
    run.architecture,
    variables,
    ids,
    max_tokens=max_tokens,
    rule=rule,
    seed=seed,
    eos=run.tokenizer.eos,
  )
  return [new_text(run.tokenizer, p, n) for p, n in zip(ids, new)]


def sample_text(run: Any, variables, prompt: str, **how) -> str:
  """`sample_texts` for one prompt."""
  return sample_texts(run, variables, [prompt], **how)[0]
