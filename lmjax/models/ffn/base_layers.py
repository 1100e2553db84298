"""BASE layers: each token goes to one of E experts; in training all experts get equally many.

  s_t,e = h_t . w_e,   y_t = sigma(s_t,e(t)) (f_e(t)(h_t) - h_t)
  training:  e maximizes sum_t s_t,e(t) under equal loads;   otherwise e(t) = argmax_e s_t,e

Lewis et al., 2021 (BASE Layers, arXiv:2103.16716), and its release in fairseq. f_e is a stack of
`sublayers` residual sublayers z + W_down relu(W_up LN(z)), W_down at first 0; w_e start orthogonal
with length 0.1. The layer's residual adds h: with sigma f(h) + (1 - sigma) h as in the paper, h
would be there twice. So the whole is at first the identity. No loss for balance, no noise; gradient
reaches w_e by the gate alone, and none follows the choice. h is what the residual part gives, with
`pre` the normed stream; the release, where the layer stands by itself, takes the stream as it is.

Loads. A group of n tokens gives each expert n / E, the first n mod E experts one more, so that no
number of tokens is refused. Padding is in no expert: it takes no place, its y is 0. `groups`
independent assignments are made in a micro-batch, as by the paper's workers: tokens are first
shuffled over the groups (stream `dropout`), since neighbours are alike. One group is all tokens
together. Groups depend on no mesh; on a mesh a multiple of the devices that share the batch is
needed, and experts lie over its axis `expert`. The assignment (see
`kernels.assignment`) is near the best one, not always the best.

Trap: in training an assignment sees all tokens of its group, later ones and other rows (fact
`couples`), so that a training loss is not quite a likelihood. Evaluation and decoding look at the
token alone; loads are then as they come and no token is dropped. Other traps: a softmax in place of
the sigmoid; the balanced assignment at evaluation.

Reports: load_min and load_max, shares of the tokens that the experts have; confidence, the mean
gate; in training rounds, of the auctions.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax import kinds
from lmjax.models.ffn import _experts
from lmjax.models.ffn import _sized
from lmjax.models.ffn import _travel
from lmjax.nn import params
from lmjax.parallel import shard
from lmjax.parallel.facts import Fact
from lmjax.registry import register

LARGEST = 1 << 16
DEEPEST = 64


def orthogonal(key, shape, dtype):
  """Columns of length 0.1, orthogonal where there are no more of them than rows; decomposed in
  float32.
  """
  return jax.nn.initializers.orthogonal(0.1)(key, shape, jnp.float32).astype(dtype)


@register('ffn', couples='micro')
class BaseLayers(_sized.Sized):
  """One expert of E for each token, equally loaded in training."""

  experts: int = 8
  sublayers: int = 1
  groups: int = 1

  @staticmethod
  def check(experts, sublayers, groups, **sizes):
    if not 2 <= experts <= LARGEST:
      raise ValueError(f'experts={experts}: from 2 to {LARGEST} is expected')
    if not 1 <= sublayers <= DEEPEST:
      raise ValueError(f'sublayers={sublayers}: from 1 to {DEEPEST} is expected')
    if not 1 <= groups <= LARGEST:
      raise ValueError(f'groups={groups}: from 1 to {LARGEST} is expected')
    _sized.Sized.check(**sizes)

  @nn.compact
  def __call__(self, x_BTD, ctx):
    linear = ctx.scheme.linear
    if linear.name != 'dense':
      raise kinds.Unsupported(
        f'config.model.linear={linear}: ffn base_layers keeps its experts as full matrices; use '
        'dense()'
      )
    every_BT = jnp.ones_like(x_BTD[..., 0], bool)
    real_BT = every_BT if ctx.segments_BT is None else ctx.segments_BT > 0
    x_BTD = jnp.where(real_BT[..., None], x_BTD, 0)  # nothing of padding may reach a sum
    scores_BTE = self.scores(x_BTD, ctx)
    groups = self.groups if ctx.train else None
    key = self.make_rng('dropout') if ctx.train and self.groups > 1 else None
    if ctx.train:
      _travel.check(real_BT.size, self.groups)
    weights, specs = _experts.weights(self, ctx, x_BTD.shape[-1])
    found = _travel.run(
      x_BTD, jax.lax.stop_gradient(scores_BTE), real_BT, weights, specs, groups=groups, key=key
    )
    chosen_BTE = found.expert[..., None] == jnp.arange(self.experts)
    gate_BT = nn.sigmoid(jnp.sum(jnp.where(chosen_BTE, scores_BTE, 0), axis=-1))
    y_BTD = jnp.where(real_BT[..., None], found.y * gate_BT[..., None].astype(x_BTD.dtype), 0)
    aux = self.report(chosen_BTE, gate_BT, real_BT)
    return y_BTD, aux | ({'rounds': jnp.mean(found.rounds)} if ctx.train else {})

  @nn.nowrap
  def report(self, chosen_BTE, gate_BT, real_BT) -> dict[str, jax.Array]:
    by = 1 / jnp.maximum(jnp.sum(real_BT, dtype=jnp.float32), 1)
    load_E = jnp.sum(chosen_BTE, axis=(0, 1), dtype=jnp.float32) * by
    confidence = jnp.sum(jnp.where(real_BT, gate_BT, 0)) * by
    return dict(load_min=jnp.min(load_E), load_max=jnp.max(load_E), confidence=confidence)

  def scores(self, x_BTD, ctx):
    """h . w_e in float32."""
    fact = Fact(('embed', None), ('embed',), 'hidden')
    shape = (x_BTD.shape[-1], self.experts)
    w_DE = params.param(self, 'centroids', shape, fact, ctx.scheme, orthogonal)
    w_DE = shard.gather(w_DE, fact.names).astype(jnp.float32)
    return params.contract(x_BTD.astype(jnp.float32), w_DE, 1, (None,))
