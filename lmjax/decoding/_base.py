"""What decoding rules share: one step of the model, the rule's own filter, one draw for each row.

A rule that only reshapes the distribution defines `filter`; `rule` reads a spec and joins several
by `|`, applied from left to right. A rule that keeps something from step to step overrides `init`
and `advance` (`State.own`), one that keeps several texts at once `streams` and `finish` too.

Axes: B rows, R = B * streams rows of the caches, C tokens of the prompt, N tokens of a step, K
texts, T new tokens.
"""

import math
from typing import Any, Sequence

from flax import struct
import jax
import jax.numpy as jnp

from lmjax import kinds
from lmjax import registry

LEAST = 1e-38  # of a temperature: about the smallest number of float32


@struct.dataclass
class State:
  """caches: one per model, whatever its step function takes and gives. tokens_B: the last tokens,
  not yet fed to the models. own: what the rule keeps, a pytree, or None.
  """

  caches: tuple
  tokens_B: jax.Array
  own: Any = None


@struct.dataclass
class Start:
  """What a rule may know before the first step.

  tail_BC: the end of each prompt, -1 before its first token; C is the rule's `tail`. eos: the
  token that ends a text, -1 for none. length: columns T of the output, static.
  """

  tail_BC: jax.Array
  eos: jax.Array
  length: int = struct.field(pytree_node=False)


class Rule:
  """Draws from softmax(filter(logits)). The plain rule changes nothing.

  Attributes:
    tail: tokens of the prompt that `init` wants to see, the last one included.
    streams: rows that the caches have for each prompt, equal at the start.
    ahead: tokens that are fed to a model beyond those that become text, by which it goes back.
  """

  tail, streams, ahead = 1, 1, 0

  def load(self, vocab: int, tokenizer=None) -> Any:
    """Arrays that the rule reads, a pytree given to `init`. Raises ValueError naming the file."""
    del vocab, tokenizer

  def init(self, step_fns, caches: tuple, start: Start, arrays) -> State:
    """The state before the first step: caches of all but the last token of each prompt."""
    del step_fns, arrays
    return State(caches, start.tail_BC[:, -1])

  def filter(self, logits_BV):
    """Logits after the rule; excluded tokens are -inf, at least one token is kept."""
    return logits_BV

  def advance(self, step_fns, state: State, rng) -> tuple[State, jax.Array]:
    """At least one token for each row.

    Args:
      step_fns: one function (cache, tokens_B) -> (logits_BV, cache).
      state: the cache and the tokens to feed.
      rng: one key for each row (B,), so that a row draws the same alone and in any batch.

    Returns:
      the next state and what joins the text, int32: tokens_B, or (B, N) with -1 behind a row's
      last; -1 alone where `finish` gives the text.
    """
    if len(step_fns) != 1:
      raise kinds.Unsupported(
        f'decoding {type(self).__name__.lower()} takes one model, {len(step_fns)} were given'
      )
    logits_BV, cache = step_fns[0](state.caches[0], state.tokens_B)
    tokens_B = draw(self.filter(logits_BV.astype(jnp.float32)), rng)
    return state.replace(caches=(cache,), tokens_B=tokens_B), tokens_B

  def done(self, state: State):
    """Rows (B,) that have nothing more to write, besides those that met eos in their text."""
    return jnp.zeros((), bool)

  def finish(self, state: State):
    """None, or what takes the place of the text: (texts_BKT, scores_BK or None), the best first;
    -1 behind a text's last token, a score of -inf where there is no text.
    """
    return None


class Chained(Rule):
  """Filters one after another."""

  def __init__(self, rules: Sequence[Rule]):
    self.rules = tuple(rules)

  def filter(self, logits_BV):
    for r in self.rules:
      logits_BV = r.filter(logits_BV)
    return logits_BV


def draw(logits_BV, keys_B):
  """One token for each row from softmax(logits), each with its own key: int32 (B,)."""
  return jax.vmap(jax.random.categorical)(keys_B, logits_BV).astype(jnp.int32)


def leading(scores_BV, amounts_BV, limit):
  """Which entries have less than `limit` of the amounts before them, from the highest score to the
  lowest and among equals by index.

  The lowest score whose betters stay below the limit is found by halving the range of float32, 32
  sums, and not by sorting, which takes twenty times as long for 32,000 entries on a CPU.
  """
  scores_BV = jnp.where(scores_BV == 0, 0.0, scores_BV.astype(jnp.float32))  # -0 is 0
  bits_BV = jax.lax.bitcast_convert_type(scores_BV, jnp.int32)
  key_BV = jnp.where(bits_BV < 0, bits_BV ^ jnp.int32(0x7FFFFFFF), bits_BV)  # ordered like floats
  total = lambda which_BV: jnp.sum(jnp.where(which_BV, amounts_BV, 0), axis=-1, keepdims=True)

  def halved(_, bounds):
    low_B1, high_B1 = bounds
    middle_B1 = (low_B1 & high_B1) + ((low_B1 ^ high_B1) >> 1)  # their mean, without overflow
    below_B1 = total(key_BV > middle_B1) < limit
    return jnp.where(below_B1, low_B1, middle_B1 + 1), jnp.where(below_B1, middle_B1, high_B1)

  least, most = (jnp.full_like(key_BV[..., :1], x) for x in (-(2**31), 2**31 - 1))
  _, last_B1 = jax.lax.fori_loop(0, 32, halved, (least, most))
  more_BV, same_BV = key_BV > last_B1, key_BV == last_B1
  equal_BV = jnp.where(same_BV, amounts_BV, 0)
  before_BV = total(more_BV) + jnp.cumsum(equal_BV, axis=-1) - equal_BV
  return more_BV | (same_BV & (before_BV < limit))


def keep(logits_BV, mask_BV):
  """Logits where the mask is true, -inf elsewhere."""
  return jnp.where(mask_BV, logits_BV, -jnp.inf)


def check_temperature(name: str, t: float, least: float = LEAST) -> None:
  """Raises ValueError for what logits cannot be divided by."""
  if not least <= t < math.inf:
    raise ValueError(f'{name}={t}: a finite temperature of at least {least} is expected')


def tempered(logits_BV, t: float):
  """logits / t less its maximum, so that no t overflows: the maximum is 0 exactly, also on devices
  that take so small a t for 0.
  """
  less_BV = logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True)
  return jnp.where(less_BV == 0, 0.0, less_BV / t)


def rule(spec: 'str | registry.Chain | registry.Part') -> Any:
  """The rule of a spec such as 'top_k(k=40) | temperature(t=0.8)'. Raises SpecError; Unsupported
  where a part cannot be chained.
  """
  chain = registry.make_chain('decoding', spec) if isinstance(spec, str) else spec
  parts = [(chain.name, chain)] if isinstance(chain, registry.Part) else chain.items()
  made = [(name, part()) for name, part in parts]
  if len(made) == 1:
    return made[0][1]
  for name, r in made:
    if not is_filter(r):
      raise kinds.Unsupported(
        f'decoding {name} does more than filter logits, so it cannot be joined with others by |'
      )
  return Chained([r for _, r in made])


def inner(spec: 'registry.Chain | registry.Part') -> Rule:
  """The rule that another one holds. Raises ValueError unless it only filters."""
  made = None if spec is None else rule(spec)
  if made is None or not is_filter(made):
    raise ValueError(f'rule={spec}: filters such as greedy() or top_p(p=0.9) are expected')
  return made


def is_filter(r) -> bool:
  """Whether a rule is no more than its `filter`."""
  return hasattr(r, 'filter') and getattr(type(r), 'advance', None) in (None, Rule.advance)
