"""Contrastive decoding: tokens that a large model, the expert, likes more than a small one, the
amateur, among those that the expert finds plausible.

  head = {x: p_E(x) >= alpha max_w p_E(w)}
  score(x) = log p_E(x) - log p_A(x) for x in the head, -inf elsewhere;  p_A = softmax(z_A / t)

`beam` texts are searched for the largest sum of scores and the best by score over length is
returned; beam=1 is greedy. `rule` draws instead, from softmax(filter(score)), and needs beam=1.
Between equal scores (two equal models give 0 everywhere) the expert's probability decides. Only
the amateur is tempered: t = `amateur_temperature`, 0.5 for the paper's GPT-2 pairs, 1 for OPT.
`context` lets the amateur see so many tokens only, 1 being the last one alone, from position 0 on.
Texts of a beam that ended compete by score over length as well.

Li et al., 2022 (arXiv:2210.15097): alpha = 0.1, beam 5, the amateur the smallest of its family. The
expert is the model itself, the amateur the first of the other models; both have one tokenizer.
"""

import dataclasses
import math
from typing import Annotated

from flax import struct
import jax
import jax.numpy as jnp

from lmjax.decoding import _base
from lmjax.decoding import _beams
from lmjax.registry import Chain, Part, register


@struct.dataclass
class Own:
  """tail_RC: the last tokens of each text, -1 for none. likely_BK: log p_E of the live texts."""

  tail_RC: jax.Array
  likely_BK: jax.Array
  eos: jax.Array
  beams: _beams.Beams | None


@register('decoding', models=2)
@dataclasses.dataclass(frozen=True)
class ContrastiveDecoding(_base.Rule):
  """Expert less amateur, where the expert is plausible."""

  alpha: float = 0.1
  amateur_temperature: float = 1.0
  beam: int = 5
  context: int = 0
  rule: Annotated[Part | Chain | None, 'decoding'] = None

  @staticmethod
  def check(alpha, amateur_temperature, beam, context, rule):
    if not 0 < alpha <= 1:
      raise ValueError(f'alpha={alpha}: above 0 and at most 1 is expected')
    # Below it log p_A has no end, and a score above all others says nothing.
    _base.check_temperature('amateur_temperature', amateur_temperature, least=1e-30)
    if not 1 <= beam <= 1000:
      raise ValueError(f'beam={beam}: from 1 to 1000 texts are expected')
    if not 0 <= context <= 1000:
      raise ValueError(f'context={context}: 0 for all, or from 1 to 1000 tokens, are expected')
    if rule is not None:
      _base.inner(rule)
      if beam != 1:
        raise ValueError(f'rule={rule} draws one text: beam={beam} must be 1 with it')

  @property
  def tail(self):
    return max(1, self.context)

  @property
  def streams(self):
    return self.beam

  def init(self, step_fns, caches, start, arrays):
    rows, k = start.tail_BC.shape[0], self.beam
    own = Own(
      jnp.repeat(start.tail_BC, k, axis=0),
      jnp.zeros((rows, k)),
      start.eos,
      _beams.first(rows, k, start.length) if k > 1 else None,
    )
    return _base.State(caches, own.tail_RC[:, -1], own)

  def advance(self, step_fns, state, rng):
    expert_RV, expert = step_fns[0](state.caches[0], state.tokens_B)
    if self.context:
      amateur_RV, amateur = step_fns[1].alone(state.own.tail_RC), state.caches[1]
    else:
      amateur_RV, amateur = step_fns[1](state.caches[1], state.tokens_B)
    likely_RV = jax.nn.log_softmax(expert_RV.astype(jnp.float32), axis=-1)
    score_RV = self.score(likely_RV, amateur_RV.astype(jnp.float32))
    state = state.replace(caches=(expert, amateur))
    if self.beam > 1:
      return self._grow(step_fns, state, score_RV, likely_RV)
    if self.rule is None:
      tokens_B = ranked(score_RV, likely_RV, 1)[1][:, 0]
    else:
      tokens_B = _base.draw(_base.inner(self.rule).filter(score_RV), rng)
    own = state.own.replace(tail_RC=_shifted(state.own.tail_RC, tokens_B))
    return _base.State(state.caches, tokens_B, own), tokens_B

  def score(self, likely_RV, amateur_RV):
    """log p_E - log p_A in the head, -inf elsewhere, from log p_E and the amateur's logits."""
    best_R1 = jnp.max(likely_RV, axis=-1, keepdims=True)
    less_RV = jax.nn.log_softmax(_base.tempered(amateur_RV, self.amateur_temperature), axis=-1)
    return _base.keep(likely_RV - less_RV, likely_RV >= best_R1 + math.log(self.alpha))

  def _grow(self, step_fns, state, score_RV, likely_RV):
    own, k, vocab = state.own, self.beam, score_RV.shape[-1]
    rows = score_RV.shape[0] // k
    score_RN, tokens_RN = ranked(score_RV, likely_RV, min(2 * k, vocab))
    likely_RN = jnp.take_along_axis(likely_RV, tokens_RN, axis=-1)
    whole = lambda old_BK, new_RN: (old_BK[..., None] + new_RN.reshape(rows, k, -1)).reshape(
      rows, -1
    )
    beams, parents_BK, tokens_BK = _beams.grow(
      own.beams,
      jnp.repeat(jnp.arange(k), tokens_RN.shape[-1]),
      tokens_RN.reshape(rows, -1),
      whole(own.beams.score_BK, score_RN),
      own.eos,
      ties_BM=whole(own.likely_BK, likely_RN),
      mean=True,
    )
    from_R = (jnp.arange(rows)[:, None] * k + parents_BK).reshape(-1)
    tokens_R = tokens_BK.reshape(-1)
    own = Own(
      _shifted(own.tail_RC[from_R], tokens_R),
      (own.likely_BK.reshape(-1)[from_R] + likely_RV[from_R, tokens_R]).reshape(rows, k),
      own.eos,
      beams,
    )
    caches = tuple(fn.rows(c, from_R) for fn, c in zip(step_fns, state.caches))
    return _base.State(caches, tokens_R, own), jnp.full(rows, -1, jnp.int32)

  def done(self, state):
    if self.beam == 1:
      return super().done(state)
    return jnp.all(state.own.beams.score_BK == -jnp.inf, axis=-1)

  def finish(self, state):
    return None if self.beam == 1 else (_beams.best(state.own.beams)[0][:, :1], None)


def ranked(score_RV, likely_RV, n: int):
  """(scores, tokens) of the n best of each row, (R, n); between equal scores the likelier first."""
  order_RV = jnp.argsort(-likely_RV, axis=-1, stable=True)
  score_RN, at_RN = jax.lax.top_k(jnp.take_along_axis(score_RV, order_RV, axis=-1), n)
  return score_RN, jnp.take_along_axis(order_RV, at_RN, axis=-1).astype(jnp.int32)


def _shifted(tail_RC, tokens_R):
  return jnp.concatenate([tail_RC[:, 1:], tokens_R[:, None]], axis=1)
