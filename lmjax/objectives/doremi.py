"""DoReMi's proxy: group DRO over the sources, on how much worse each is than a reference model.

  excess_i = max(l_i - r_i, 0)            l_i, r_i: nats a token of source i, proxy and reference
  a_i <- (1 - c) a_i exp(eta excess_i) / sum_j a_j exp(eta excess_j) + c / m
  loss = sum_i a_i l_i                    with the new a, a constant

`clip` says what is cut at 0: the excess of each token before it is averaged (`"token"`, the paper),
or that of the source (`"domain"`, as in common re-implementations). A source that the batch lacks
keeps its last excess and adds nothing to the loss. The result is the average of a over all steps,
metric `mean_weight/<source>`; `config.data.mixture='learned(run="RUN")'` trains with it.
Xie et al., 2023 (arXiv:2305.10429): eta 1, c 1e-3, rows drawn uniformly over the sources (weights
of the sum, or `temperature(alpha=0)`): l_i is a mean over tokens of i, so that their number does
not weigh twice.

The loss of each token is the derivative of the likelihood by that token's weight, which costs no
further pass and works for whatever the inner objective predicts. What the inner objective adds to
the likelihood (z-loss, smoothing, losses of parts) is added as it is, weighed by no a.

`reference` is the directory of a finished run of the same model and tokenizer, trained on uniform
weights. Its variables are the collection `reference` of this run: loaded once, before the first
step, never changed, and saved with the rest: a third more than parameters and Adam's moments take,
for a resume that does not need that directory. The reference costs a forward pass.
"""

import dataclasses
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp

from lmjax import kinds
from lmjax.objectives import _domains
from lmjax.registry import Part, register

REFERENCE = 'reference'


@register(
  'objective',
  couples='global',
  lookahead=lambda args: args['inner'].fact('lookahead'),
  causal=lambda args: args['inner'].fact('causal'),
  reads=lambda args: ('source', *args['inner'].fact('reads')),
  weights=lambda args: args['inner'].fact('weights'),
  memory=(_domains.OWN,),
  used_as=lambda args: args['inner'],
  holds=lambda args: {REFERENCE: args['reference']},
)
@dataclasses.dataclass(frozen=True)
class Doremi:
  """sum_i a_i l_i; a grows where the loss is above a reference run's."""

  model: Any
  tokenizer: Any
  sources: tuple[str, ...]
  reference: str
  inner: Annotated[Part, 'objective'] = 'clm()'
  eta: float = 1.0
  smoothing: float = 1e-3
  clip: Literal['token', 'domain'] = 'token'

  @staticmethod
  def check(reference, inner, eta, smoothing, clip):
    del clip
    _domains.check_inner(inner)
    if not reference:
      raise ValueError("reference='': the directory of a run is expected")
    if eta < 0 or not 0 <= smoothing <= 1:
      raise ValueError(
        f'eta={eta}, smoothing={smoothing}: at least 0, and a share from 0 to 1, are expected'
      )

  def __post_init__(self):
    _domains.check_sources('doremi', self.sources)
    object.__setattr__(self, 'within', self.inner())

  def init(self, rng, batch):
    """The reference is zeros here: it is the run's to load (fact `holds`)."""
    m, variables = len(self.sources), dict(self.within.init(rng, batch))
    held = _domains.others(variables, 'backward')
    memory = _domains.first(jnp.full((m,), 1 / m)) | dict(excess=jnp.zeros((m,)))
    return variables | {_domains.OWN: memory, REFERENCE: jax.tree.map(jnp.zeros_like, held)}

  def loss(self, params, vars, batch, rng, train: bool = True) -> kinds.Loss:
    inner = _domains.others(vars, _domains.OWN, REFERENCE)
    if not train:
      return self.within.loss(params, inner, batch, rng, False)
    memory, held = vars[_domains.OWN], dict(vars[REFERENCE])
    own, nll_BL = tokens(self.within, params, inner, batch, rng, True)
    _, ref_BL = tokens(self.within, held.pop('params'), held, batch, rng, False)
    by = lambda x_B: _domains.sums(batch['source'], x_B, len(self.sources))
    weight_M = by(own.rows[1])
    gap_BL = jax.lax.stop_gradient(nll_BL - ref_BL)
    gap_BL = jnp.maximum(gap_BL, 0.0) if self.clip == 'token' else gap_BL
    found_M = _domains.ratio(by(jnp.sum(gap_BL, axis=-1)), weight_M)
    excess_M = jnp.where(weight_M > 0, jnp.maximum(found_M, 0.0), memory['excess'])
    alpha_M = reweighed(memory['alpha'], excess_M, self.eta, self.smoothing)
    memory = _domains.moved(memory, alpha_M) | dict(excess=excess_M)

    nll_M = by(own.rows[0])
    total = jnp.sum(alpha_M * _domains.ratio(nll_M, weight_M)) * own.weight
    total += own.sum - jnp.sum(own.rows[0])
    metrics = own.metrics | _domains.reports(
      self.sources, weight=alpha_M, mean_weight=memory['mean'], excess=excess_M
    )
    vars = {**own.vars, _domains.OWN: memory, REFERENCE: vars[REFERENCE]}
    return own._replace(sum=total, metrics=metrics, vars=vars)


def reweighed(alpha_M, excess_M, eta: float, smoothing: float):
  """The new weights, see above."""
  grown_M = jax.nn.softmax(jnp.log(alpha_M) + eta * excess_M)
  return (1 - smoothing) * grown_M + smoothing / alpha_M.size


def tokens(objective, params, vars, batch, rng, train: bool):
  """(the loss, its negative log-likelihood by token times the token's weight, float32 (B, L))."""
  w_BL = batch['weights'] if 'weights' in batch else jnp.ones_like(batch['tokens'], jnp.float32)

  def likelihood(w_BL):
    out = objective.loss(params, vars, {**batch, 'weights': w_BL}, rng, train)
    return out.metrics['nll'][0], out

  nll, slope, out = jax.vjp(likelihood, w_BL, has_aux=True)
  return out, slope(jnp.ones_like(nll))[0] * w_BL
