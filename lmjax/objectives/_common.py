"""What likelihood objectives share: running the model on a batch and summing cross-entropy."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lmjax import kinds
from lmjax.kernels.linear_cross_entropy import weighted
from lmjax.nn import embedding
from lmjax.parallel import shard


class Inputs(NamedTuple):
  """What a model is run on; tokens (B, T), `train` still to be set."""

  tokens_BT: jax.Array
  ctx: kinds.Ctx


class Places(NamedTuple):
  """What an objective predicts where: inputs, and the target and weight of each place (B, T)."""

  inputs: Inputs
  targets_BT: jax.Array
  weights_BT: jax.Array


def inputs(batch, lookahead: int = 0) -> Inputs:
  """The model's inputs: all fields of the batch less the tokens ahead."""

  def cut(key):
    field = batch.get(key)
    return field[:, :-lookahead] if lookahead and field is not None else field

  tokens, segments, positions = cut('tokens'), cut('segments'), cut('positions')
  source = None
  if 'encoder_tokens' in batch:
    source = kinds.Text(*(batch[f'encoder_{k}'] for k in ('tokens', 'positions', 'segments')))
  return Inputs(tokens, kinds.Ctx(positions, segments, prefix_BT=cut('prefix'), source=source))


def weighed(weights_BT, batch, lookahead: int = 0):
  """weights times the batch's own weights of the targets, where it has them."""
  given = batch.get('weights')
  return weights_BT if given is None else weights_BT * given[:, lookahead:]


def run(model, params, vars, given: Inputs, rng, train: bool):
  """(outputs, vars after the pass); `backward` is only read, see `kinds.Objective`."""
  rngs = {'dropout': rng} if train else {}
  outputs, new = model.apply(
    {'params': params, **vars},
    given.tokens_BT,
    given.ctx.replace(train=train),
    mutable=[k for k in vars if k != 'backward'],
    rngs=rngs,
  )
  return outputs, {**vars, **new}


def init(model, rng, given: Inputs):
  return model.init({'params': rng, 'dropout': rng}, *given)


def cross_entropy(
  outputs, targets_BT, weights_BT, *, z_loss: float = 0.0, label_smoothing: float = 0.0
):
  """Weighted sums over tokens, all float32.

  nll = lse(z) - z[target], and with smoothing s
  objective = (1 - s) nll + s mean_v(lse(z) - z_v) + z_loss lse(z)^2

  Returns:
    (objective sum, {'nll': ..., 'accuracy': ...} sums, nll of each row (B,)).
  """
  w = weights_BT
  found = embedding.cross_entropy(
    outputs, targets_BT, w, z_loss=z_loss, label_smoothing=label_smoothing
  )
  rows_B = jnp.sum(jnp.where(w > 0, found.nll_BT, 0.0) * w, axis=-1)
  sums = dict(nll=rows_B.sum(), accuracy=weighted(found.hits_BT, w))
  return found.total, sums, rows_B


def draw(outputs, rng):
  """A token from the model's own distribution at each place, independent; int32 (B, T), a constant.

  The largest of logit + Gumbel noise, so that no probabilities are kept.
  """
  return gumbel_max(embedding.logits(outputs), rng)


def gumbel_max(z_BTV, rng):
  """Draws from softmax(z), int32 (B, T); no gradient flows through them."""
  z_BTV = jax.lax.stop_gradient(z_BTV)
  place = dict(out_sharding=jax.typeof(z_BTV).sharding) if shard.is_explicit() else {}
  noise_BTV = jax.random.gumbel(rng, z_BTV.shape, z_BTV.dtype, **place)
  return jnp.argmax(z_BTV + noise_BTV, axis=-1).astype(jnp.int32)


def finish(loss_sum, sums, rows_B, weights_BT, outputs, vars) -> kinds.Loss:
  """The loss of an objective that predicts tokens."""
  weight = jnp.sum(weights_BT)
  metrics = {k: (v, weight) for k, v in sums.items()}
  rows = rows_B, jnp.sum(weights_BT, axis=-1)
  return with_aux(loss_sum, weight, metrics, outputs, vars, rows)


def with_aux(loss_sum, weight, metrics, outputs, vars, rows) -> kinds.Loss:
  """Adds the parts' own losses, weighted like tokens, and names the metrics."""
  for key, value in outputs.aux.items():
    metrics[key] = (value * weight, weight)
    if key.startswith('loss/'):
      loss_sum = loss_sum + value * weight
  return kinds.Loss(loss_sum, weight, metrics, vars, rows)
