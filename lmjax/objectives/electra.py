"""Replaced-token detection: a small generator fills in hidden tokens, the model says of every token
whether it is the original one.

  places m: round(rate * length) tokens of each row, uniform among those that are not special
  generator: sees the mask token at each of them with probability `mask`, else the token itself
  x'_m ~ softmax(generator logits / temperature), drawn by Gumbel-max; no gradient flows through
  label_t = 1 where x'_t is not x_t: a generator that finds the original token made no fake

  loss = mean over m of CE(generator, x_m) + weight * mean over all t of BCE(model, label_t)

One update trains both networks. They share the embedding of tokens and positions and its norm, and
nothing else; the generator has the model's layers at `generator` times its width (a projection
leads there), so that parts whose sizes follow the width (heads, feed-forward) shrink with it. What
is kept is the model: `init_from='discriminator(run=...)'` begins another run from it, and evals see
it alone.

Means are over rows as they are long: the first mean is taken in each row and weighed by the row's
length, which is the paper's where rows are full, and lets rows stand alone.

Ablations of the paper's section 3: `generator=0` draws replacements uniformly from the vocabulary,
`generator=1` is a generator as large as the model, `detect="places"` judges the replaced places
alone. Not here: tying all weights, adversarial and two-stage training, all-tokens MLM.

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
from lmjax.registry import register


@register('objective', causal=False)
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

  @staticmethod
  def check(generator, rate, mask, weight, temperature, detect):
    del detect
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
    object.__setattr__(self, 'pair', _electra.Pair(m, round(width) or None))

  def init(self, rng, batch):
    tokens, ctx = _common.inputs(batch)
    places = jnp.zeros((tokens.shape[0], self.most(tokens.shape[1])), jnp.int32)
    rngs = {'params': rng, 'dropout': rng}
    return self.pair.init(rngs, tokens, places, ctx, method='both')

  def most(self, length: int) -> int:
    """Places of the longest row."""
    return max(1, round(self.rate * length))

  def variables(self, params, vars):
    """The model's own, as its architecture takes them."""

    def own(tree):
      shared = {k: tree[k] for k in ('embed', 'position', 'embed_norm') if k in tree}
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
    original_BK = _electra.at(tokens_BT[..., None], places_BK)[..., 0]
    run = functools.partial(self._run, params, train=train)
    if self.pair.narrow is None:
      drawn_BK = jax.random.randint(
        fill, original_BK.shape, 0, self.tokenizer.vocab_size, jnp.int32
      )
      nll_BK = right_BK = jnp.zeros(original_BK.shape)
    else:
      hidden_BK = taken_BK & (jax.random.uniform(hide, taken_BK.shape) < self.mask)
      masked_BT = overwritten(tokens_BT, places_BK, hidden_BK, self.tokenizer.mask)
      (z_BKV, found), vars = run(vars, drop[0], 'generate', masked_BT, places_BK, ctx)
      aux.append(found)
      hot_BKV = jax.lax.broadcasted_iota(jnp.int32, z_BKV.shape, 2) == original_BK[..., None]
      nll_BK = jax.nn.logsumexp(z_BKV, axis=-1) - jnp.sum(jnp.where(hot_BKV, z_BKV, 0), axis=-1)
      right_BK = jnp.argmax(z_BKV, axis=-1) == original_BK
      drawn_BK = _common.gumbel_max(z_BKV / self.temperature, fill)
    fake_BT = overwritten(tokens_BT, places_BK, taken_BK, drawn_BK)
    (z_BT, found), vars = run(vars, drop[1], 'discriminate', fake_BT, ctx)
    label_BT = fake_BT != tokens_BT
    judged_BT = real_BT
    if self.detect == 'places':
      judged_BT = overwritten(jnp.zeros_like(tokens_BT), places_BK, taken_BK, 1) > 0
    return self._total(
      (nll_BK, right_BK, taken_BK), (z_BT, label_BT, judged_BT), real_BT, [*aux, found], vars
    )

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

  def _total(self, generator, model, real_BT, aux, vars) -> kinds.Loss:
    nll_BK, right_BK, taken_BK = generator
    z_BT, label_BT, judged_BT = model
    length_B, places_B = jnp.sum(real_BT, axis=1), jnp.sum(taken_BK, axis=1)
    mean_B = lambda x_BK: jnp.sum(jnp.where(taken_BK, x_BK, 0), 1) / jnp.maximum(places_B, 1)
    bce_BT = jnp.where(judged_BT, sigmoid_cross_entropy(z_BT, label_BT), 0)
    judged_B = jnp.sum(judged_BT, axis=1)
    judged_mean_B = jnp.sum(bce_BT, axis=1) / jnp.maximum(judged_B, 1)
    weight = jnp.sum(length_B).astype(jnp.float32)
    total = jnp.sum(length_B * (mean_B(nll_BK) + self.weight * judged_mean_B))
    places, judged = (jnp.sum(n).astype(jnp.float32) for n in (places_B, judged_B))
    count = lambda x: jnp.sum(x).astype(jnp.float32)
    right = ((z_BT > 0) == label_BT) & judged_BT
    metrics = dict(
      mlm=(count(jnp.where(taken_BK, nll_BK, 0)), places),
      mlm_accuracy=(count(right_BK & taken_BK), places)
      if self.pair.narrow
      else (0 * places, places),
      detection=(count(bce_BT), judged),
      detection_accuracy=(count(right), judged),
      fakes=(count(label_BT & judged_BT), judged),
    )
    for found in aux:
      outputs = kinds.Outputs(None, None, None, 1.0, None, None, found)
      total, _, metrics, *_ = _common.with_aux(total, weight, metrics, outputs, vars, None)
    return kinds.Loss(total, weight, metrics, vars)


def overwritten(tokens_BT, places_BK, taken_BK, with_BK):
  """tokens with `with_BK` at the places taken; a place is taken once at most."""
  hot_BKT = (places_BK[..., None] == jnp.arange(tokens_BT.shape[1])) & taken_BK[..., None]
  new_BT = jnp.sum(jnp.where(hot_BKT, jnp.broadcast_to(with_BK, places_BK.shape)[..., None], 0), 1)
  return jnp.where(jnp.any(hot_BKT, axis=1), new_BT.astype(tokens_BT.dtype), tokens_BT)


def sigmoid_cross_entropy(z, label):
  """-log sigmoid(z) where label, -log(1 - sigmoid(z)) elsewhere, without overflow."""
  return jnp.maximum(z, 0) - z * label + jnp.log1p(jnp.exp(-jnp.abs(z)))
