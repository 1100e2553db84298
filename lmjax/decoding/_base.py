"""What decoding rules share: one step of the model, the rule's own filter, one draw for each row.

A rule that only reshapes the distribution defines `filter`; `rule` reads a spec and joins several
by `|`, applied from left to right.
"""

from typing import Any, Sequence

from flax import struct
import jax
import jax.numpy as jnp

from lmjax import kinds
from lmjax import registry


@struct.dataclass
class State:
  """caches: one per model, whatever its step function takes and gives. tokens_B: the last tokens,
  not yet fed to the models.
  """

  caches: tuple
  tokens_B: jax.Array


class Rule:
  """Draws from softmax(filter(logits)). The plain rule changes nothing."""

  def filter(self, logits_BV):
    """Logits after the rule; excluded tokens are -inf, at least one token is kept."""
    return logits_BV

  def advance(self, step_fns, state: State, rng) -> tuple[State, jax.Array]:
    """One token for each row.

    Args:
      step_fns: one function (cache, tokens_B) -> (logits_BV, cache).
      state: the cache and the tokens to feed.
      rng: one key for each row (B,), so that a row draws the same alone and in any batch.

    Returns:
      the next state and its tokens_B, int32.
    """
    if len(step_fns) != 1:
      raise kinds.Unsupported(
        f'decoding {type(self).__name__.lower()} takes one model, {len(step_fns)} were given'
      )
    logits_BV, cache = step_fns[0](state.caches[0], state.tokens_B)
    tokens_B = draw(self.filter(logits_BV.astype(jnp.float32)), rng)
    return State((cache,), tokens_B), tokens_B


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


def keep(logits_BV, mask_BV):
  """Logits where the mask is true, -inf elsewhere."""
  return jnp.where(mask_BV, logits_BV, -jnp.inf)


def rule(spec: 'str | registry.Chain') -> Any:
  """The rule of a spec such as 'top_k(k=40) | temperature(t=0.8)'. Raises SpecError; Unsupported
  where a part cannot be chained.
  """
  chain = registry.make_chain('decoding', spec) if isinstance(spec, str) else spec
  made = [(name, part()) for name, part in chain.items()]
  if len(made) == 1:
    return made[0][1]
  for name, r in made:
    if not hasattr(r, 'filter') or not _only_filters(r):
      raise kinds.Unsupported(
        f'decoding {name} does more than filter logits, so it cannot be joined with others by |'
      )
  return Chained([r for _, r in made])


def _only_filters(r) -> bool:
  return getattr(type(r), 'advance', None) in (None, Rule.advance)
