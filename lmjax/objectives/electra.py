"""Replaced-token detection: a small generator fills in hidden tokens, the model says of every token
whether it is the original one.

  places m: round(rate * length) tokens of each row, uniform among those that are not special
  generator: sees the mask token at each of them with probability `mask`, else the token itself
  x'_m ~ softmax(generator logits / temperature), drawn by Gumbel-max; no gradient flows through
  label_t = 1 where x'_t is not x_t: a generator that finds the original token made no fake

  loss = mean over m of CE(generator, x_m) + weight * mean over all t of BCE(model, label_t)

One update trains both networks. What is kept is the model: `init_from='discriminator(run=...)'`
begins another run from it, and evals see it alone.

Sharing. The generator has the model's layers at `generator` times its width, so that parts whose
sizes follow the width (heads, feed-forward) shrink with it. `share='embed'`: token and position
embeddings and their norm are one set for both networks and nothing else is; a projection leads to
the generator's width. Where the embedding is narrower than the model (`model.embed` =
factorized(size=128, position=learned(), norm=layer_norm()), ELECTRA-Small) table, positions and
norm of that size are shared and each network has a projection of its own, the model's inside
`embed`. Positions or a norm behind that projection would be of one network's width, and are
refused. The generator's logits come from the shared table by a head that leads to its size.
`share='all'`, for generator=1: the layers too are one set (and the model's projection), all but the
two heads. `share='none'`: the generator has embeddings of its own.

Means are over rows as they are long: the first mean is taken in each row and weighed by the row's
length, which is the paper's where rows are full, and lets rows stand alone.

Ablations of the paper's section 3, and what becomes of "m" and "t" above:
  generator=0         replacements are uniform in the vocabulary
  generator=1         a generator as large as the model
  detect="places"     the replaced places alone are judged ("ELECTRA 15%")
  predict="places"    no detection: the model predicts the original tokens at the places, by a head
                      like the generator's ("Replace MLM"): CE(model, x_m)
  predict="all"       it predicts all tokens ("All-Tokens MLM"), with a copying mechanism on its
                      input x': p(v) = D [v = x'_t] + (1 - D) softmax(logits_t)[v], D = 1 -
                      sigmoid of what else is the detection's logit
  adversarial=True    the generator is not taught the original tokens, it is to raise the model's
                      detection loss R (appendix): REINFORCE at each place by itself,
                      - log p(x'_m) (R_m - b_m), b = -log sigmoid(w h), h the generator's state.
                      w is trained by the cross-entropy of sigmoid(w h) and exp(-R)
`predict` has the loss `weight` x CE; 50 was chosen for detection, the paper gives none for these, 1
makes both equal. Not said there either, and ours: nothing flows from b into h, draws at another
`temperature` are that policy's, and the adversarial loss stands where CE(generator) was.

Two stages ("two-stage": the generator alone; then the model, which begins as a copy of it, against
the frozen generator) are two runs. First `electra(generator=1, share="none", weight=0)`; then
`electra(generator=1, share="none")` with init_from='two_stage(run=...)' and an optimizer that
trains the model alone, such as
  train_only(names="...") | clip() | adam() | decay() | train_only(names="...")
with names "embed/*, discriminator/*, judge/*", and "position/*", "embed_norm/*" where there are
such; the first one keeps the generator's gradients out of clipping.

Clark et al., 2020 (arXiv:2003.10555): rate 0.15, weight 50, the generator a quarter to a third of
the width; mask 0.85 is of the published code.
"""

import dataclasses
import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp

from lmjax import kinds
from lmjax import registry
from lmjax.objectives import _common
from lmjax.objectives import _electra
from lmjax.objectives import _electra_losses as losses
from lmjax.objectives import _electra_variants as _variants
from lmjax.registry import register


@register('objective', causal=False, weights=False)
@dataclasses.dataclass(frozen=True)
class Electra:
  """Masked language modelling by a generator, detection of its replacements by the model."""

  model: Any
  tokenizer: Any
  generator: float = 0.25
  rate: float = 0.15
  mask: float = 0.85
  weight: float = 50.0
  temperature: float = 1.0
  detect: Literal['all', 'places'] = 'all'
  share: Literal['embed', 'all', 'none'] = 'embed'
  predict: Literal['places', 'all'] | None = None
  adversarial: bool = False

  @staticmethod
  def check(generator, rate, mask, weight, temperature, **how):
    if not 0 <= generator <= 1:
      raise ValueError(f'generator={generator}: a share of the width from 0 to 1 is expected')
    if not 0 < rate < 1:
      raise ValueError(f'rate={rate}: above 0 and below 1 is expected')
    if not 0 <= mask <= 1:
      raise ValueError(f'mask={mask}: a probability from 0 to 1 is expected')
    if not 0 <= weight < math.inf:
      raise ValueError(f'weight={weight}: a finite number of at least 0 is expected')
    if not 0 < temperature < math.inf:
      raise ValueError(f'temperature={temperature}: a positive number is expected')
    _variants.check(generator, weight, **how)

  def __post_init__(self):
    m = self.model.model
    if self.tokenizer.mask is None:
      raise kinds.Unsupported(
        'objective electra: the tokenizer has no mask token; give it one or choose another one'
      )
    if type(self.model) is not registry.get('architecture', 'transformer').obj:
      raise kinds.Unsupported(
        'objective electra makes two networks of one stack of layers: '
        'config.model.architecture=transformer() is expected'
      )
    if not m.embed.fact('tied'):
      raise kinds.Unsupported(
        f'objective electra: config.model.embed={m.embed} has an output matrix, which nothing '
        'would train; tied() is expected'
      )
    width = m.width * self.generator
    if width != round(width):
      raise ValueError(
        f'generator={self.generator} of config.model.width={m.width} is {width:g}: a whole number '
        'is expected'
      )
    found = self.share, self.predict, self.adversarial
    object.__setattr__(self, 'pair', _electra.Pair(m, round(width) or None, *found))
    _variants.check_model(m, self.pair.leads)

  def init(self, rng, batch):
    tokens, ctx = _common.inputs(batch)
    places = jnp.zeros((tokens.shape[0], self.most(tokens.shape[1])), jnp.int32)
    rngs = {'params': rng, 'dropout': rng}
    made = self.pair.init(rngs, tokens, places, ctx, method='both')
    _variants.check_backward(made, self.pair)
    return made

  def most(self, length: int) -> int:
    """Places of the longest row."""
    return max(1, round(self.rate * length))

  def variables(self, params, vars):
    """The model's own, as its architecture takes them."""

    def own(tree):
      shared = {k: tree[k] for k in _variants.ENTRANCE if k in tree}
      return {**shared, **tree.get('discriminator', {})}

    return own(params), {k: own(v) for k, v in vars.items()}

  def choose(self, tokens_BT, segments_BT, rng):
    """(places (B, K), whether each is one (B, K)): as many of a row as its length says."""
    tok = self.tokenizer
    special = [i for i in (tok.bos, tok.eos, tok.pad, tok.mask) if i is not None]

    def best(tokens_BT, segments_BT, u_BT):
      real_BT = segments_BT > 0
      may_BT = real_BT & ~jnp.isin(tokens_BT, jnp.asarray(special, tokens_BT.dtype))
      score_BT = jnp.where(may_BT, u_BT, -1.0)
      best_BK, places_BK = jax.lax.top_k(score_BT, self.most(tokens_BT.shape[1]))
      wanted_B = jnp.maximum(1, jnp.round(self.rate * jnp.sum(real_BT, axis=1)))
      taken_BK = (best_BK >= 0) & (jnp.arange(best_BK.shape[1]) < wanted_B[:, None])
      return places_BK.astype(jnp.int32), taken_BK

    names = ('batch', None), ('batch', None)
    u_BT = jax.random.uniform(rng, tokens_BT.shape)
    return _electra.on_rows(best, *names)(tokens_BT, segments_BT, u_BT)

  def loss(self, params, vars, batch, rng, train: bool = True) -> kinds.Loss:
    choose, hide, fill, *drop = jax.random.split(rng, 5)
    (tokens_BT, ctx), aux = _common.inputs(batch), []
    ctx, real_BT = ctx.replace(train=train), batch['segments'] > 0
    places_BK, taken_BK = self.choose(tokens_BT, batch['segments'], choose)
    original_BK = take(tokens_BT, places_BK)
    run = functools.partial(self._run, params, train=train)
    z_BKV = critic_BK = None
    if self.pair.narrow is None:
      drawn_BK = jax.random.randint(
        fill, original_BK.shape, 0, self.tokenizer.vocab_size, jnp.int32
      )
      nll_BK = right_BK = jnp.zeros(original_BK.shape)
    else:
      hidden_BK = taken_BK & (jax.random.uniform(hide, taken_BK.shape) < self.mask)
      masked_BT = overwritten(tokens_BT, places_BK, hidden_BK, self.tokenizer.mask)
      (out, found), vars = run(vars, drop[0], 'generate', masked_BT, places_BK, ctx)
      (z_BKV, critic_BK), aux = out, [_of_generator(found)]
      nll_BK, right_BK = losses.likelihood(z_BKV, original_BK)
      drawn_BK = _common.gumbel_max(z_BKV / self.temperature, fill)
    fake_BT = overwritten(tokens_BT, places_BK, taken_BK, drawn_BK)
    (out, found), vars = run(vars, drop[1], 'discriminate', fake_BT, places_BK, ctx)
    judged = self.judged(out, fake_BT, tokens_BT, places_BK, taken_BK, real_BT)
    taught_BK, reward = nll_BK, {}
    if self.adversarial:
      reward_BK = take(judged.loss_BN, places_BK)
      taught_BK = losses.reinforce(z_BKV / self.temperature, drawn_BK, critic_BK, reward_BK)
      reward = dict(reward=total(reward_BK, taken_BK))
    metrics = dict(
      mlm=total(nll_BK, taken_BK),
      mlm_accuracy=total(right_BK, taken_BK),
      fakes=total(fake_BT != tokens_BT, self.counted(places_BK, taken_BK, real_BT)),
      **{self.named: total(judged.loss_BN, judged.counts_BN)},
      **{f'{self.named}_accuracy': total(judged.right_BN, judged.counts_BN)},
      **reward,
    )
    return self._total(taught_BK, taken_BK, judged, real_BT, metrics, [*aux, found], vars)

  @property
  def named(self) -> str:
    """The metric of the model's own task."""
    return 'detection' if self.predict is None else 'prediction'

  def counted(self, places_BK, taken_BK, real_BT):
    """Tokens that the model is judged by, (B, T)."""
    if 'places' not in (self.detect, self.predict):
      return real_BT
    return overwritten(jnp.zeros(real_BT.shape, jnp.int32), places_BK, taken_BK, 1) > 0

  def judged(self, out, fake_BT, tokens_BT, places_BK, taken_BK, real_BT) -> losses.Judged:
    """What the model says of x', measured."""
    z_BT, logits = out
    if self.predict == 'places':
      nll_BK, right_BK = losses.likelihood(logits, take(tokens_BT, places_BK))
      return losses.Judged(nll_BK, taken_BK, right_BK)
    if self.predict == 'all':
      nll_BT, right_BT = losses.copying(z_BT, logits, fake_BT, tokens_BT)
      return losses.Judged(nll_BT, real_BT, right_BT)
    counts_BT = self.counted(places_BK, taken_BK, real_BT)
    return losses.detection(z_BT, fake_BT != tokens_BT, counts_BT)

  def _run(self, params, vars, rng, method: str, *args, train: bool):
    """(what the pair gives, vars behind it)."""
    out, new = self.pair.apply(
      {'params': params, **vars},
      *args,
      method=method,
      mutable=[k for k in vars if k != 'backward'],
      rngs={'dropout': rng} if train else {},
    )
    return out, {**vars, **new}

  def _total(self, taught_BK, taken_BK, judged, real_BT, metrics, aux, vars) -> kinds.Loss:
    length_B = jnp.sum(real_BT, axis=1)
    model_B = self.weight * row_mean(judged.loss_BN, judged.counts_BN)
    summed = jnp.sum(length_B * (row_mean(taught_BK, taken_BK) + model_B))
    weight = jnp.sum(length_B).astype(jnp.float32)
    for found in aux:
      outputs = kinds.Outputs(None, None, None, 1.0, None, None, found)
      summed, _, metrics, *_ = _common.with_aux(summed, weight, metrics, outputs, vars, None)
    return kinds.Loss(summed, weight, metrics, vars)

  def passes(self, steps: int, source: int) -> list[kinds.Pass]:
    """Both networks: the generator over all tokens, its head at the places alone."""
    del source
    return _variants.passes(self.pair, steps, self.most(steps) / steps)


def _of_generator(aux):
  """Reports under names that are not the model's."""
  place = lambda k: f'loss/generator/{k[5:]}' if k.startswith('loss/') else f'generator/{k}'
  return {place(k): v for k, v in aux.items()}


def row_mean(x_BN, where_BN):
  """The mean of each row, 0 of one without places."""
  return jnp.sum(jnp.where(where_BN, x_BN, 0), 1) / jnp.maximum(jnp.sum(where_BN, 1), 1)


def total(x_BN, where_BN):
  """(sum, number of places)."""
  return tuple(jnp.sum(x).astype(jnp.float32) for x in (jnp.where(where_BN, x_BN, 0), where_BN))


def take(x_BT, places_BK):
  """x at the places: (B, K)."""
  return _electra.at(x_BT[..., None], places_BK)[..., 0]


def overwritten(tokens_BT, places_BK, taken_BK, with_BK):
  """tokens with `with_BK` at the places taken; a place is taken once at most."""
  hot_BKT = (places_BK[..., None] == jnp.arange(tokens_BT.shape[1])) & taken_BK[..., None]
  new_BT = jnp.sum(jnp.where(hot_BKT, jnp.broadcast_to(with_BK, places_BK.shape)[..., None], 0), 1)
  return jnp.where(jnp.any(hot_BKT, axis=1), new_BT.astype(tokens_BT.dtype), tokens_BT)
