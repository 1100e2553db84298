"""Superposed decoding: k drafts of one text for the passes of one, since the model reads a mixture
of the drafts' last tokens.

  gamma = softmax(l_1 ... l_k),  input = sum_j gamma_j E[last token of draft j]
  p_LM = softmax(logits / temperature), the `candidates` best tokens, renormalised
  log f_j(x) = (1 - alpha) log p_LM(x) + alpha log p_ng(x | draft j)
  l <- l_j + log f_j(x): of all k * candidates the best 2k; those that end with eos leave, k go on

p_ng(x | draft) = sum_g weights[g - 1] p_g(x | last g tokens) with counts of n-grams, the prompt
included; contexts never seen add nothing. Where no candidate of a draft was seen behind it,
log f = (1 - alpha) log p_LM - penalty. The first step has one live draft, the prompt, so that its
best tokens begin the drafts. There is one stream of caches, and it holds mixtures only; `reset`
reads the best draft's own tokens in their place every so many tokens (0: never), against drift.
Drafts are meant to be short, about 10 tokens.

`generate` gives k drafts and exp(-l / length) of each, lower first: a proxy of perplexity made of
superposed scores, no likelihood of the draft (`LM.loglikelihood_tokens` is).

Shen et al., 2024 (arXiv:2405.18400); defaults are the released configuration for k = 3, which has
candidates = 3 k and n-grams of two to six tokens counted over about 200,000 documents
(`python -m lmjax.ngrams`). alpha = 0 needs no n-grams.
"""

import dataclasses
import math

from flax import struct
import jax
import jax.numpy as jnp

from lmjax.decoding import _base
from lmjax.decoding import _beams
from lmjax.decoding import _ngrams
from lmjax.registry import register

NEVER = -1e28  # below it are logits of tokens that do not exist, whatever the temperature


@struct.dataclass
class Own:
  """tail_BKC: the last tokens of each draft, -1 for none. arrays: counts of n-grams or None."""

  beams: _beams.Beams
  tail_BKC: jax.Array
  eos: jax.Array
  arrays: _ngrams.Tables | None


@register('decoding', rewinds=lambda a: a['reset'] > 0)
@dataclasses.dataclass(frozen=True)
class SuperposedDecoding(_base.Rule):
  """k drafts, one stream."""

  k: int = 3
  ngrams: str | None = None
  alpha: float = 0.54
  temperature: float = 0.06
  candidates: int | None = None
  weights: tuple = (0.01, 0.04, 0.15, 0.18, 0.12)
  penalty: float = 200.0
  reset: int = 0

  @staticmethod
  def check(k, ngrams, alpha, temperature, candidates, weights, penalty, reset):
    if not 1 <= k <= 1000:
      raise ValueError(f'k={k}: from 1 to 1000 drafts are expected')
    if not 0 <= alpha < 1:
      raise ValueError(f'alpha={alpha}: at least 0 and below 1 is expected')
    if alpha > 0 and ngrams is None:
      raise ValueError(
        f'alpha={alpha} weighs n-grams: ngrams="PATH" of a file that python -m lmjax.ngrams wrote, '
        'or alpha=0 for none, is expected'
      )
    _base.check_temperature('temperature', temperature)
    if candidates is not None and candidates < k:
      raise ValueError(f'candidates={candidates}: at least k={k} tokens are expected')
    numbers = all(isinstance(w, (int, float)) and math.isfinite(w) and w >= 0 for w in weights)
    if not weights or not numbers or sum(weights) <= 0:
      raise ValueError(
        f'weights={weights}: numbers of at least 0, not all 0, are expected, one for each length '
        'of context from 1 on'
      )
    if not (penalty >= 0 and math.isfinite(penalty)):
      raise ValueError(f'penalty={penalty}: a finite number of at least 0 is expected')
    if not 0 <= reset <= 1000:
      raise ValueError(f'reset={reset}: 0 for never, or from 1 to 1000 tokens, are expected')

  @property
  def tail(self):
    return max(len(self.weights), 1)

  @property
  def ahead(self):
    return self.reset

  def load(self, vocab, tokenizer=None):
    if self.alpha == 0:
      return None
    tables = _ngrams.load(self.ngrams, vocab, tokenizer)
    if tables.order <= len(self.weights):
      raise ValueError(
        f'ngrams={self.ngrams!r} counts n-grams of up to {tables.order} tokens, but '
        f'{len(self.weights)} weights need {len(self.weights) + 1}'
      )
    return tables

  def init(self, step_fns, caches, start, arrays):
    rows = start.tail_BC.shape[0]
    tail_BKC = jnp.broadcast_to(start.tail_BC[:, None], (rows, self.k, start.tail_BC.shape[1]))
    beams = _beams.first(rows, self.k, start.length)
    return _base.State(caches, start.tail_BC[:, -1], Own(beams, tail_BKC, start.eos, arrays))

  def advance(self, step_fns, state, rng):
    own = state.own
    gamma_BK = mixture(own.beams.score_BK)
    logits_BV, cache = step_fns[0].mixed(state.caches[0], own.tail_BKC[:, :, -1], gamma_BK)
    n = min(self.candidates or 3 * self.k, logits_BV.shape[-1])
    top_BN, tokens_BN = jax.lax.top_k(logits_BV.astype(jnp.float32), n)
    top_BN = _base.keep(_base.tempered(top_BN, self.temperature), top_BN > NEVER)
    log_f_BKN = self.scores(jax.nn.log_softmax(top_BN, axis=-1), tokens_BN, own)
    rows, k = own.beams.score_BK.shape
    beams, parents_BK, new_BK = _beams.grow(
      own.beams,
      jnp.repeat(jnp.arange(k), n),
      jnp.tile(tokens_BN, (1, k)),
      (own.beams.score_BK[..., None] + log_f_BKN).reshape(rows, -1),
      own.eos,
    )
    tail_BKC = jax.vmap(lambda tail_KC, parents_K: tail_KC[parents_K])(own.tail_BKC, parents_BK)
    tail_BKC = jnp.concatenate([tail_BKC[:, :, 1:], new_BK[..., None]], axis=-1)
    own = own.replace(beams=beams, tail_BKC=tail_BKC)
    if self.reset:
      cache = self._anchored(step_fns[0], cache, beams)
    return _base.State((cache,), new_BK[:, 0], own), jnp.full(rows, -1, jnp.int32)

  def scores(self, logp_BN, tokens_BN, own):
    """log f of each draft (B, K, N) from the shared candidates."""
    rows, k = own.beams.score_BK.shape
    logp_BKN = jnp.broadcast_to(logp_BN[:, None], (rows, k, logp_BN.shape[-1]))
    if self.alpha == 0:
      return logp_BKN
    tokens_BKN = jnp.broadcast_to(tokens_BN[:, None], logp_BKN.shape)
    seen_BKN = _ngrams.probabilities(own.arrays, own.tail_BKC, tokens_BKN, self.weights)
    seen_BKN = jnp.where(logp_BKN == -jnp.inf, 0, seen_BKN)
    mixed_BKN = (1 - self.alpha) * logp_BKN + self.alpha * jnp.log(seen_BKN)
    none_BK1 = jnp.all(seen_BKN == 0, axis=-1, keepdims=True)
    return jnp.where(none_BK1, (1 - self.alpha) * logp_BKN - self.penalty, mixed_BKN)

  def _anchored(self, model, slot, beams):
    """Every `reset` tokens the last so many inputs, mixtures, become the best draft's tokens."""
    n = self.reset

    def read_again(slot):
      texts_BN = jax.lax.dynamic_slice_in_dim(beams.texts_BKT[:, 0], beams.t - 1 - n, n, axis=1)
      slot = model.back(slot, jnp.full(texts_BN.shape[0], n), n)
      return model.many(slot, jnp.maximum(texts_BN, 0))[1]

    due = (beams.t > 1) & ((beams.t - 1) % n == 0)  # the drafts' last tokens were not read yet
    return jax.lax.cond(due, read_again, lambda slot: slot, slot)

  def done(self, state):
    return jnp.all(state.own.beams.score_BK == -jnp.inf, axis=-1)

  def finish(self, state):
    return _beams.best(state.own.beams)


def mixture(score_BK):
  """Weights of the live drafts, of sum 1; equal where none lives."""
  alive_B1 = jnp.any(score_BK > -jnp.inf, axis=-1, keepdims=True)
  return jax.nn.softmax(jnp.where(alive_B1, score_BK, 0.0), axis=-1)
