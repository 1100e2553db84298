"""Contrastive weight tying: no vocabulary is predicted; each state finds the embedding of its
target among those of the other targets.

  S_ij = h_i . E[w_j]        loss = mean_i [ logsumexp_j S_ij - S_ii ]

h_i are the last hidden states behind the final norm at the N places that carry a target, w_i those
targets, E the input embedding itself: raw dot products, no norms, no temperature. j runs over all
N places, with multiplicity: a token that occurs c times stands c times in the denominator. With
c_v of each kind that is a softmax over the kinds present, biased by log c_v, plus log c of the
target. Nothing is stopped: E learns from both sides. Godey et al., 2023 (arXiv:2309.08351).

Which places carry what target is the inner objective's: `clm()` gives the headless decoder, `mlm()`
the headless encoder (the authors' code randomises 10 % of all inputs besides, this does not).

The N places are those of a micro-batch, over all its devices: the number of micro-batches is a
setting of the method (fact `couples`), the number of devices is not; the paper's are those of one
device. Scores are made `block` places at a time and again on the way back, so that neither N x N
nor anything of the size of the vocabulary is kept.

The model has no perplexity: E as an output matrix is not trained to be one. `surgery='add_head()'`
copies it into one that a second run trains. Needs an embedding that is one table for both uses, so
that there is no matrix which nothing trains; caps and multipliers of logits are refused.
"""

import dataclasses
import functools
from typing import Annotated, Any

import jax
from jax.sharding import PartitionSpec as P
import jax.numpy as jnp

from lmjax import kinds
from lmjax.nn import embedding
from lmjax.objectives import _common
from lmjax.parallel import shard
from lmjax.registry import Part, register


@register(
  'objective',
  couples='micro',
  reads=lambda args: args['inner'].fact('reads'),
  lookahead=lambda args: args['inner'].fact('lookahead'),
  causal=lambda args: args['inner'].fact('causal'),
)
@dataclasses.dataclass(frozen=True)
class HeadlessCwt:
  """logsumexp_j h_i.e_j - h_i.e_i over the targets of a micro-batch."""

  model: Any
  tokenizer: Any
  inner: Annotated[Part, 'objective'] = 'clm()'
  block: int = 1024

  @staticmethod
  def check(inner, block):
    if block < 1:
      raise ValueError(f'block={block}: a positive number of places is expected')
    if not hasattr(inner.obj, 'places'):
      raise ValueError(
        f'inner={inner}: an objective that says which places carry which targets is expected, such '
        'as clm() or mlm()'
      )
    ignored = sorted(
      k for k, v in inner.args if k not in inner.obj.of_places and v != usual(inner, k)
    )
    if ignored:
      raise ValueError(
        f'inner={inner}: its places and targets are taken, not its loss, so that {ignored[0]} '
        'would do nothing; leave it out'
      )

  def __post_init__(self):
    m = self.model.model
    if not m.embed.fact('tied'):
      raise kinds.Unsupported(
        f'objective headless_cwt: config.model.embed={m.embed} has an output matrix, which nothing '
        'would train; tied() is expected'
      )
    if m.embed.fact('size') is not None or dict(m.embed.args).get('bias'):
      raise kinds.Unsupported(
        f'objective headless_cwt: config.model.embed={m.embed}: a bias would not be trained, and a '
        'table that is narrower than the model would be multiplied out; tied() is expected'
      )
    if m.cap is not None or m.scheme.init.logit_scale() != 1:
      raise kinds.Unsupported(
        'objective headless_cwt takes plain dot products: config.model.cap=0 and a '
        'config.model.init without a multiplier of the logits are expected'
      )
    object.__setattr__(self, 'within', self.inner())

  def init(self, rng, batch):
    return self.within.init(rng, batch)

  def loss(self, params, vars, batch, rng, train: bool = True) -> kinds.Loss:
    hide, drop = jax.random.split(rng)
    given, targets_BT, w_BT = self.within.places(batch, hide)
    outputs, vars = _common.run(self.model, params, vars, given, drop, train)
    e_BTD = embedding.look_up(outputs.unembed_VD, targets_BT, outputs.hidden_BTD.dtype)
    total, hits = contrast(outputs.hidden_BTD, e_BTD, targets_BT, w_BT, self.block)
    weight = jnp.sum(w_BT)
    metrics = dict(contrast=(total, weight), accuracy=(hits, weight))
    return _common.with_aux(total, weight, metrics, outputs, vars, None)


def usual(part: Part, key: str):
  """The default of a part's argument."""
  return getattr(part.obj, key, None)


def contrast(h_BTD, e_BTD, targets_BT, w_BT, block: int):
  """(sum of w_i (logsumexp_j h_i.e_j - h_i.e_i), sum of w_i where the best j has i's target),
  float32; places of weight 0 are neither rows nor columns.
  """
  n = pieces(*h_BTD.shape[:2], block)

  def sums(h_BTD, e_BTD, targets_BT, w_BT):
    e_ND = e_BTD.reshape(-1, e_BTD.shape[-1])
    real_N, ids_N = w_BT.reshape(-1) > 0, targets_BT.reshape(-1)
    columns_N = real_N | ~jnp.any(real_N)  # of nothing there is no logarithm

    def piece(h_MD, own_MD, ids_M, w_M):
      z_MN = jax.lax.dot_general(
        h_MD, e_ND, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
      )
      z_MN = jnp.where(columns_N, z_MN, -jnp.inf)
      own_M = jnp.sum(h_MD.astype(jnp.float32) * own_MD.astype(jnp.float32), axis=-1)
      lost_M = jax.nn.logsumexp(z_MN, axis=-1) - own_M
      hit_M = ids_N[jnp.argmax(z_MN, axis=-1)] == ids_M
      return jnp.sum(jnp.where(w_M > 0, lost_M, 0.0) * w_M), jnp.sum(hit_M * w_M)

    if n == 1:
      return piece(*(flat(x) for x in (h_BTD, e_BTD, targets_BT, w_BT)))
    cut = functools.partial(in_pieces, n=n)
    add = lambda total, xs: (jax.tree.map(jnp.add, total, jax.checkpoint(piece)(*xs)), None)
    zeros = jnp.zeros(()), jnp.zeros(())
    return jax.lax.scan(add, zeros, tuple(map(cut, (h_BTD, e_BTD, targets_BT, w_BT))))[0]

  # Every place meets every other: the partitioner gathers the columns.
  return shard.automatic(sums, (P(), P()))(h_BTD, e_BTD, targets_BT, w_BT)


def pieces(rows: int, steps: int, block: int) -> int:
  """In how many pieces of time rows x steps places go through, each of at most `block` where time
  divides so.
  """
  return next((n for n in range(1, steps) if steps % n == 0 and rows * steps // n <= block), steps)


def flat(x_BT):
  return x_BT.reshape(-1, *x_BT.shape[2:])


def in_pieces(x_BT, n: int):
  """(n, B T / n, ...): cut along time, so that each device has its part of every piece."""
  b, t, *rest = x_BT.shape
  return jnp.moveaxis(x_BT.reshape(b, n, t // n, *rest), 1, 0).reshape(n, b * t // n, *rest)
