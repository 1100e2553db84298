"""Masked language modelling: some tokens are hidden and predicted from both sides.

A fraction `rate` of the tokens is chosen; of these `mask` become the mask token, `random` a random
one, the rest stay. Loss: cross-entropy at the chosen places. Devlin et al., 2018
(arXiv:1810.04805): rate 0.15, mask 0.8, random 0.1. Masks are drawn anew in every step (RoBERTa,
arXiv:1907.11692). Needs a tokenizer with a mask token and a model that is not causal.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from lmjax import kinds
from lmjax.objectives import _common
from lmjax.registry import register


@register('objective', lookahead=0, causal=False)
@dataclasses.dataclass(frozen=True)
class Mlm:
  """Cross-entropy at masked places."""

  model: Any
  tokenizer: Any
  rate: float = 0.15
  mask: float = 0.8
  random: float = 0.1

  of_places = ('rate', 'mask', 'random')

  @staticmethod
  def check(rate, mask, random):
    if not 0 < rate < 1:
      raise ValueError(f'rate={rate}: above 0 and below 1 is expected')
    if mask < 0 or random < 0 or mask + random > 1:
      raise ValueError(
        f'mask={mask}, random={random}: shares of at least 0 that sum to at most 1 are expected'
      )

  def __post_init__(self):
    if self.tokenizer.mask is None:
      raise kinds.Unsupported(
        'objective mlm: the tokenizer has no mask token; give it one or choose another tokenizer'
      )

  def init(self, rng, batch):
    return _common.init(self.model, rng, _common.inputs(batch))

  def corrupt(self, tokens, segments, rng):
    """(corrupted tokens, weights): weights are 1 at the chosen places. Special tokens are never
    chosen.
    """
    choose, kind, fill = jax.random.split(rng, 3)
    special = jnp.zeros_like(tokens, bool)
    for i in (self.tokenizer.bos, self.tokenizer.eos, self.tokenizer.pad, self.tokenizer.mask):
      if i is not None:
        special |= tokens == i
    chosen = (jax.random.uniform(choose, tokens.shape) < self.rate) & (segments > 0) & ~special
    u = jax.random.uniform(kind, tokens.shape)
    noise = jax.random.randint(fill, tokens.shape, 0, self.tokenizer.vocab_size, tokens.dtype)
    new = jnp.where(
      u < self.mask, self.tokenizer.mask, jnp.where(u < self.mask + self.random, noise, tokens)
    )
    return jnp.where(chosen, new, tokens), chosen.astype(jnp.float32)

  def places(self, batch, rng) -> _common.Places:
    """The corrupted inputs, and which places carry which targets."""
    tokens, w_BT = self.corrupt(batch['tokens'], batch['segments'], rng)
    w_BT = _common.weighed(w_BT, batch)
    return _common.Places(_common.inputs(batch)._replace(tokens_BT=tokens), batch['tokens'], w_BT)

  def loss(self, params, vars, batch, rng, train: bool = True) -> kinds.Loss:
    hide, drop = jax.random.split(rng)
    given, targets_BT, w_BT = self.places(batch, hide)
    outputs, vars = _common.run(self.model, params, vars, given, drop, train)
    total, sums, rows_B = _common.cross_entropy(outputs, targets_BT, w_BT)
    return _common.finish(total, sums, rows_B, w_BT, outputs, vars)
