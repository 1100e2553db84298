"""Causal language modelling: each token predicts the next one of its document.

  loss = sum_t w_t [ (1 - s) nll_t + s mean_v(lse_t - z_tv) + z_loss lse_t^2 ]
  nll_t = lse(z_t) - z_t[x_{t+1}]

w_t = 1, or the field `weights` of a batch that has one, where x_{t+1} belongs to the same document
as x_t and neither is padding. Natural logarithms: nats a token.
z-loss: PaLM (Chowdhery et al., 2022, arXiv:2204.02311, section 5) with 1e-4. Label smoothing:
Szegedy et al., 2016 (arXiv:1512.00567). The reported `nll` is the plain negative log-likelihood
whatever is added to the objective.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from lmjax import kinds
from lmjax.objectives import _common
from lmjax.registry import register


@register('objective', lookahead=1, causal=True)
@dataclasses.dataclass(frozen=True)
class Clm:
  """Next-token cross-entropy."""

  model: Any
  z_loss: float = 0.0
  label_smoothing: float = 0.0

  of_places = ()

  @staticmethod
  def check(z_loss, label_smoothing):
    if z_loss < 0:
      raise ValueError(f'z_loss={z_loss}: at least 0 is expected')
    if not 0 <= label_smoothing < 1:
      raise ValueError(f'label_smoothing={label_smoothing}: at least 0 and below 1 is expected')

  def init(self, rng, batch):
    return _common.init(self.model, rng, _common.inputs(batch, 1))

  def loss(self, params, vars, batch, rng, train: bool = True) -> kinds.Loss:
    outputs, vars = _common.run(self.model, params, vars, _common.inputs(batch, 1), rng, train)
    w_BT = self.weights(batch)
    total, sums, rows_B = _common.cross_entropy(
      outputs,
      batch['tokens'][:, 1:],
      w_BT,
      z_loss=self.z_loss,
      label_smoothing=self.label_smoothing,
    )
    return _common.finish(total, sums, rows_B, w_BT, outputs, vars)

  def sample(self, params, vars, batch, rng) -> kinds.Loss:
    """The loss on labels drawn from the model itself, for estimates of the Gauss-Newton matrix.

    At each predicted place one independent draw from the model's prediction; the inputs are the
    real tokens and nothing flows through the draws. The sum is the plain cross-entropy, without
    z-loss, smoothing and the parts' own losses; its weight is the number of predicted places.
    """
    run_rng, label_rng = jax.random.split(rng)
    outputs, vars = _common.run(self.model, params, vars, _common.inputs(batch, 1), run_rng, True)
    w_BT = self.weights(batch)
    labels_BT = _common.draw(outputs, label_rng)
    total, _, rows_B = _common.cross_entropy(outputs, labels_BT, w_BT)
    return kinds.Loss(total, jnp.sum(w_BT), {}, vars, (rows_B, jnp.sum(w_BT, axis=-1)))

  def places(self, batch, rng) -> _common.Places:
    """Which places carry which targets; nothing is drawn."""
    del rng
    return _common.Places(_common.inputs(batch, 1), batch['tokens'][:, 1:], self.weights(batch))

  @staticmethod
  def weights(batch):
    """1, or the batch's own weight of the target, where a token has a successor in its document:
    float32 (B, T).
    """
    s = batch['segments']
    follows = (s[:, 1:] == s[:, :-1]) & (s[:, 1:] > 0)
    return _common.weighed(follows.astype('float32'), batch, 1)
