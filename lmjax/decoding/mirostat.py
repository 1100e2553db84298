"""Mirostat: sampling with a feedback that holds the surprise of the text at a target.

  S(x) = -log2 P(x | context)      mu_0 = 2 tau      e = S - tau      mu <- mu - eta e

tau and mu are in bits a token; the perplexity of what is written is about 2^tau. Version 1 keeps
the k best tokens under the assumption that sorted probabilities fall as i^(-s):

  s = sum b_i t_i / sum t_i^2,  b_i = ln(p_i / p_(i+1)),  t_i = ln((i+1) / i),  over the m best
  k = round((eps 2^mu / (1 - N^-eps))^(1/s)),  eps = s - 1,  at least 1 and at most N tokens

Version 2 keeps every token with S(x) <= mu, and always the most probable. Both draw from what is
kept, renormalised. S of the update is that under the model's whole distribution, which the target
is about; `renormalised=True` takes it under what was kept, as several runtimes do, and settles
elsewhere. Each row has a mu of its own.

Basu et al., 2020 (arXiv:2007.14966); the authors' script has eta = 1 and takes 3000 tokens for s,
implementations since use eta = 0.1 and m = 100. Version 2 came with these. The paper's readers
liked about 3 bits best.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from lmjax.decoding import _base
from lmjax.registry import register

NEVER = -1e29  # below it are logits of tokens that do not exist


@register('decoding')
@dataclasses.dataclass(frozen=True)
class Mirostat(_base.Rule):
  """Tokens of a surprise that is steered to tau bits."""

  tau: float = 3.0
  eta: float = 0.1
  version: int = 2
  m: int = 100
  renormalised: bool = False

  @staticmethod
  def check(tau, eta, version, m, **_):
    for key, value in dict(tau=tau, eta=eta).items():
      if not (value > 0 and math.isfinite(value)):
        raise ValueError(f'{key}={value}: a finite number above 0 is expected')
    if version not in (1, 2):
      raise ValueError(f'version={version}: 1 or 2 is expected')
    if m < 2:
      raise ValueError(f'm={m}: at least 2 tokens are expected')

  def init(self, step_fns, caches, start, arrays):
    state = super().init(step_fns, caches, start, arrays)
    return state.replace(own=jnp.full(start.tail_BC.shape[0], 2 * self.tau, jnp.float32))

  def advance(self, step_fns, state, rng):
    logits_BV, cache = step_fns[0](state.caches[0], state.tokens_B)
    logits_BV = logits_BV.astype(jnp.float32)
    kept_BV = self.kept(logits_BV, state.own)
    tokens_B = _base.draw(kept_BV, rng)
    bits_B = surprise(kept_BV if self.renormalised else logits_BV, tokens_B)
    return _base.State((cache,), tokens_B, self.update(state.own, bits_B)), tokens_B

  def kept(self, logits_BV, mu_B):
    """Logits of the tokens that mu leaves, -inf elsewhere."""
    if self.version == 2:
      bits_BV = -jax.nn.log_softmax(logits_BV, axis=-1) / math.log(2)
      best_BV = jnp.arange(logits_BV.shape[-1]) == jnp.argmax(logits_BV, axis=-1)[:, None]
      return _base.keep(logits_BV, (bits_BV <= mu_B[:, None]) | best_BV)
    top_BM, _ = jax.lax.top_k(logits_BV, min(self.m, logits_BV.shape[-1]))
    k_B = best_k(slope(top_BM), mu_B, jnp.sum(logits_BV > NEVER, axis=-1))
    ones_BV = jnp.ones_like(logits_BV)
    return _base.keep(logits_BV, _base.leading(logits_BV, ones_BV, k_B[:, None]))

  def update(self, mu_B, bits_B):
    """mu after a token of so many bits."""
    return mu_B - self.eta * (bits_B - self.tau)


def surprise(logits_BV, tokens_B):
  """-log2 of the probabilities of tokens_B under softmax(logits)."""
  logp_BV = jax.nn.log_softmax(logits_BV, axis=-1)
  return -jnp.take_along_axis(logp_BV, tokens_B[:, None], axis=-1)[:, 0] / math.log(2)


def slope(top_BM):
  """Zipf's s of each row from the logits of its best tokens, sorted; those that do not exist are
  left out.
  """
  ranks = jnp.arange(1, top_BM.shape[-1], dtype=jnp.float32)
  t_M = jnp.log1p(1 / ranks)
  real_BM = top_BM[:, 1:] > NEVER
  b_BM = jnp.where(real_BM, top_BM[:, :-1] - top_BM[:, 1:], 0)
  return jnp.sum(b_BM * t_M, axis=-1) / jnp.maximum(jnp.sum(real_BM * t_M**2, axis=-1), 1e-9)


def best_k(s_B, mu_B, tokens_B):
  """How many of `tokens_B` tokens to keep, from Zipf's s and mu bits: int32, 1 ... tokens_B.

  In logarithms, since 2^mu may be beyond float32. At s = 1 the limit k = 2^mu / ln N holds.
  """
  eps_B, log_n_B = s_B - 1, jnp.log(jnp.maximum(tokens_B, 2).astype(jnp.float32))
  near_B = jnp.abs(eps_B) < 1e-4
  safe_B = jnp.where(near_B, 1.0, eps_B)
  factor_B = jnp.where(near_B, 1 / log_n_B, safe_B / -jnp.expm1(-safe_B * log_n_B))
  log_k_B = (jnp.log(factor_B) + mu_B * math.log(2)) / jnp.maximum(s_B, 1e-3)
  k_B = jnp.round(jnp.exp(jnp.minimum(log_k_B, log_n_B + 1)))
  return jnp.clip(k_B, 1, tokens_B).astype(jnp.int32)
