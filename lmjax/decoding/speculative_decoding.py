"""Speculative decoding: a small model drafts `gamma` tokens, the large one reads them in one pass,
and what is kept has exactly the large one's distribution.

  accept x_i ~ q_i with probability min(1, p_i(x_i) / q_i(x_i)), one after another;
  at the first rejection the next token is drawn from max(0, p_i - q_i), renormalised;
  where all are accepted, from p_(gamma + 1)

p (target, the model itself) and q (draft, the first of the other models) are both what `rule` makes
of the models' distributions: 'greedy()' accepts while the argmax agrees, and writes what greedy
decoding of the target writes. Each step writes 1 to gamma + 1 tokens of each row; both caches go
back to what was accepted. A position accepts with probability sum_x min(p, q) = 1 - TV(p, q); where
that is alpha everywhere, a pass of the target yields (1 - alpha^(gamma + 1)) / (1 - alpha) tokens,
in the time of gamma c + 1 passes if one of the draft costs c.

A step of the draft reads the last two tokens in its first pass, since after gamma accepted tokens
its cache lacks one: gamma passes make gamma tokens. Where rounding alone made q larger than p, so
that nothing is left of p - q, the token comes from p.

Leviathan et al., 2022 (arXiv:2211.17192); Chen et al., 2023 (arXiv:2302.01318).
"""

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp

from lmjax.decoding import _base
from lmjax.registry import Chain, Part, register


@register('decoding', models=2, rewinds=True)
@dataclasses.dataclass(frozen=True)
class SpeculativeDecoding(_base.Rule):
  """Draft gamma tokens, keep those that the target accepts. State.own: the token before the last,
  -1 for none, which the draft's cache lacks.
  """

  gamma: int = 4
  rule: Annotated[Part | Chain, 'decoding'] = 'temperature()'

  tail = 2

  @staticmethod
  def check(gamma, rule):
    if not 1 <= gamma <= 1000:
      raise ValueError(f'gamma={gamma}: from 1 to 1000 drafted tokens are expected')
    _base.inner(rule)

  @property
  def ahead(self):
    return self.gamma

  def init(self, step_fns, caches, start, arrays):
    before_B = start.tail_BC[:, 0]
    target, draft = caches
    draft = step_fns[1].back(draft, jnp.ones_like(before_B), self.gamma)
    return _base.State((target, draft), start.tail_BC[:, 1], before_B)

  def advance(self, step_fns, state, rng):
    rows, gamma, last_B = len(state.tokens_B), self.gamma, state.tokens_B
    keys = jax.vmap(lambda key: jax.random.split(key, gamma + 2))(rng)
    drafted_BG, q_BGV, draft = self._draft(step_fns[1], state, keys[:, :gamma])
    target = step_fns[0]
    read_BN = jnp.concatenate([last_B[:, None], drafted_BG], axis=1)
    logits_BNV, cache = target.many(state.caches[0], read_BN)
    p_BNV = self.probabilities(logits_BNV)
    accepted_B = accept(p_BNV, q_BGV, drafted_BG, keys[:, gamma])
    next_B = _base.draw(jnp.log(left(p_BNV, q_BGV, accepted_B)), keys[:, gamma + 1])
    at_N = jnp.arange(gamma + 1)
    padded_BN = jnp.pad(drafted_BG, ((0, 0), (0, 1)))
    new_BN = jnp.where(at_N == accepted_B[:, None], next_B[:, None], padded_BN)
    new_BN = jnp.where(at_N > accepted_B[:, None], -1, new_BN)
    before_B = read_BN[jnp.arange(rows), accepted_B]
    caches = (
      target.back(cache, gamma - accepted_B, gamma),
      step_fns[1].back(draft, gamma - accepted_B, gamma),
    )
    return _base.State(caches, next_B, before_B), new_BN

  def probabilities(self, logits):
    """softmax(filter(logits)), of any number of axes before the vocabulary."""
    flat = logits.astype(jnp.float32).reshape(-1, logits.shape[-1])
    return jax.nn.softmax(_base.inner(self.rule).filter(flat), axis=-1).reshape(logits.shape)

  def _draft(self, model, state, keys_BG):
    """(tokens (B, gamma), their distributions (B, gamma, V), the cache without the last one)."""
    first_B2 = jnp.stack([state.own, state.tokens_B], axis=1)
    logits_B2V, cache = model.many(state.caches[1], first_B2, first_B2 >= 0)
    q_BV = self.probabilities(logits_B2V[:, 1])
    token_B = _base.draw(jnp.log(q_BV), keys_BG[:, 0])

    def one(carry, keys_B):
      cache, token_B = carry
      logits_BV, cache = model(cache, token_B)
      q_BV = self.probabilities(logits_BV)
      token_B = _base.draw(jnp.log(q_BV), keys_B)
      return (cache, token_B), (token_B, q_BV)

    rest = jnp.swapaxes(keys_BG[:, 1:], 0, 1)
    (cache, _), (tokens_GB, q_GBV) = jax.lax.scan(one, (cache, token_B), rest)
    join = lambda a, b: jnp.concatenate([a[:, None], jnp.swapaxes(b, 0, 1)], axis=1)
    return join(token_B, tokens_GB), join(q_BV, q_GBV), cache


def accept(p_BNV, q_BGV, drafted_BG, keys_B):
  """How many drafted tokens each row accepts: those before the first u >= p(x) / q(x)."""
  of = lambda a: jnp.take_along_axis(a, drafted_BG[..., None], axis=-1)[..., 0]
  u_BG = jax.vmap(lambda key: jax.random.uniform(key, drafted_BG.shape[1:]))(keys_B)
  taken_BG = u_BG * of(q_BGV) < of(p_BNV[:, :-1])
  return jnp.sum(jnp.cumprod(taken_BG.astype(jnp.int32), axis=1), axis=1)


def left(p_BNV, q_BGV, accepted_B):
  """Weights (B, V) of the token behind the accepted ones: max(0, p - q), or p behind all of them;
  they need not sum to 1.
  """
  at = lambda a: jax.vmap(lambda row, i: row[i])(a, accepted_B)
  p_BV, q_BV = at(p_BNV), at(jnp.pad(q_BGV, ((0, 0), (0, 1), (0, 0))))
  rest_BV = jnp.maximum(p_BV - q_BV, 0)
  return jnp.where(jnp.any(rest_BV > 0, axis=-1, keepdims=True), rest_BV, p_BV)


def expected_tokens(alpha: float, gamma: int) -> float:
  """Tokens that a pass of the target yields where every position accepts with probability alpha."""
  return gamma + 1.0 if alpha >= 1 else (1 - alpha ** (gamma + 1)) / (1 - alpha)
