"""DoGE's proxy: a source gains weight as far as learning from it helps the target.

  g_j = gradient of the loss of source j's rows, h_i = that of rows of source i held out
  W_j = <g_j, g_target>,  g_target = mean_i h_i, or h_t of one `target`
  step_j = min(max(lr W_j / (mean_j |g_j| + 1e-6), 0), most lr)
  log a_j <- log a_j + step_j / mu, normalised            lr: the learning rate
  parameters move along sum_j a_j g_j                     with the new a

In W each g_j and h_i is first scaled down to the norm `clip`, over all parameters together; what
the model learns from is not, while the released code moves the model along the scaled g_j as well.
Losses are means over the tokens of a source's rows. A source that the batch lacks, and a target
that it lacks, give 0. Fan et al., 2023 (arXiv:2310.15393); the scaling in W, the bounds and mu are
those of the released code (clip 1, most 5, mu 0.1). lr is the schedule's at the number of updates
made so far, which is behind the step's where updates were refused.

One in `one_in` rows of each source is held out for h and not learnt from, so that the target is not
what the step has seen. `target` is a source; with `out_of_domain` nothing is learnt from it and it
gets no weight. The result is the average of a over all steps, metric `mean_weight/<source>`, which
`config.data.mixture='learned(run="RUN")'` trains with; rows are drawn uniformly meanwhile. `A/i/j`
is <h_i, g_j>: how much learning from j lowers the loss of i.

Gradients are taken here, once, and handed to the step as those of <sum_j a_j g_j, parameters>,
whose value is not in the loss; the loss is sum_j a_j l_j. Second derivatives of it are therefore
none (fact `twice`). Rows are regrouped by source, in pieces of one group: about twice the work of a
plain step whatever the number m of sources, and memory for 2 m gradients.
"""

import dataclasses
from typing import Annotated, Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lmjax import kinds
from lmjax.objectives import _domains
from lmjax.parallel import shard
from lmjax.registry import nearest, Part, register


@register(
  'objective',
  couples='global',
  lookahead=lambda args: args['inner'].fact('lookahead'),
  causal=lambda args: args['inner'].fact('causal'),
  reads=lambda args: ('source', *args['inner'].fact('reads')),
  weights=lambda args: args['inner'].fact('weights'),
  memory=(_domains.OWN,),
  used_as=lambda args: args['inner'],
  twice=False,
)
@dataclasses.dataclass(frozen=True)
class Doge:
  """sum_j a_j l_j; a grows where the gradient agrees with the target's."""

  model: Any
  tokenizer: Any
  sources: tuple[str, ...]
  learning_rate: Callable
  inner: Annotated[Part, 'objective'] = 'clm()'
  mu: float = 0.1
  clip: float = 1.0
  most: float = 5.0
  target: str = ''
  out_of_domain: bool = False
  one_in: int = 2

  @staticmethod
  def check(inner, mu, clip, most, target, out_of_domain, one_in):
    _domains.check_inner(inner)
    for name, value in dict(mu=mu, clip=clip, most=most).items():
      if value <= 0:
        raise ValueError(f'{name}={value}: a positive number is expected')
    if one_in < 2:
      raise ValueError(f'one_in={one_in}: at least 2 is expected, so that rows are left to learn')
    if out_of_domain and not target:
      raise ValueError('out_of_domain=True: target="<a source>" is expected with it')

  def __post_init__(self):
    _domains.check_sources('doge', self.sources)
    if self.target and self.target not in self.sources:
      raise kinds.Unsupported(
        f'objective doge: target={self.target!r} is no source of config.data.train, which has '
        f'{", ".join(self.sources)}{nearest(self.target, self.sources)}'
      )
    object.__setattr__(self, 'within', self.inner())

  @property
  def learnt_M(self):
    """Which sources are learnt from."""
    return jnp.array([not (self.out_of_domain and n == self.target) for n in self.sources])

  def init(self, rng, batch):
    variables = dict(self.within.init(rng, batch))
    if 'backward' in variables:
      raise kinds.Unsupported(
        'objective doge takes its gradients itself, which a model with a state of backward passes '
        'does not allow; config.model without one is expected'
      )
    even_M = self.learnt_M / jnp.sum(self.learnt_M)
    return variables | {_domains.OWN: _domains.first(even_M)}

  def loss(self, params, vars, batch, rng, train: bool = True) -> kinds.Loss:
    inner, names = _domains.others(vars, _domains.OWN), self.sources
    if not train:
      return self.within.loss(params, inner, batch, rng, False)
    if shard.is_explicit():
      raise kinds.Unsupported(
        'objective doge regroups rows by source; config.mesh.mode=auto is expected'
      )
    m, memory = len(names), vars[_domains.OWN]
    at = jax.lax.stop_gradient(params)
    group_B = grouped(batch['source'], m, self.one_in, self.learnt_M)
    found = by_group(self.within, at, inner, batch, group_B, 2 * m, m, rng)
    mean = _domains.ratio(found.loss, found.weight)
    by = _domains.ratio(jnp.ones((2 * m,)), found.weight)
    grads = jax.tree.map(lambda g: g * scale(by, g), found.grads)
    norms = jnp.sqrt(dots(grads, grads))
    cut = jnp.minimum(1.0, self.clip / jnp.maximum(norms, 1e-30))
    split = lambda part: jax.tree.map(lambda g: g[part], grads)
    learn, held = split(slice(0, m)), split(slice(m, None))
    law_MM = cut[m:, None] * products(held, learn) * cut[:m]
    target_M = jnp.full((m,), 1 / m)
    if self.target:
      target_M = jnp.zeros((m,)).at[names.index(self.target)].set(1.0)
    score_M = jnp.sum(target_M[:, None] * law_MM, axis=0)
    size = jnp.sum((norms * cut)[:m]) / jnp.sum(self.learnt_M)
    alpha_M = reweighed(
      memory['alpha'],
      score_M / (size + 1e-6),
      self.learning_rate(memory['count']),
      self.mu,
      self.most,
    )
    memory = _domains.moved(memory, alpha_M)

    weight = jnp.sum(found.weight[:m])
    whole = jax.tree.map(lambda g: jnp.sum(g * scale(alpha_M * weight, g), axis=0), learn)
    along = optax.tree.vdot(jax.lax.stop_gradient(whole), params)
    total = jnp.sum(alpha_M * mean[:m]) * weight + (along - jax.lax.stop_gradient(along))
    metrics = found.metrics | _domains.reports(
      names, weight=alpha_M, mean_weight=memory['mean'], score=score_M
    )
    for i, name in enumerate(names):
      metrics |= _domains.reports(names, **{f'A/{name}': law_MM[i]})
    return kinds.Loss(total, weight, metrics, {**found.vars, _domains.OWN: memory}, None)


def reweighed(alpha_M, score_M, lr, mu: float, most: float):
  """The new weights, see above; `score_M` is W over the mean norm. A weight of 0 stays 0."""
  step_M = jnp.clip(lr * score_M, 0.0, most * lr)
  return jax.nn.softmax(jnp.log(alpha_M) + step_M / mu)


def grouped(source_B, m: int, one_in: int, learnt_M):
  """int32 (B,): the source of a row to learn from, m + the source of one held out, 2 m for padding.
  The last of every `one_in` rows of a source is held out, and all of a source not to learn from.
  """
  own_BM = source_B[:, None] == jnp.arange(m)
  rank_B = jnp.sum(jnp.where(own_BM, jnp.cumsum(own_BM, axis=0), 0), axis=1)  # from 1
  held_B = (rank_B % one_in == 0) | ~learnt_M[jnp.clip(source_B, 0, m - 1)]
  return jnp.where(source_B < 0, 2 * m, source_B + m * held_B).astype(jnp.int32)


class Found(NamedTuple):
  """Sums by group: losses, weights, gradients (n, ...); metrics of the rows to learn from."""

  loss: jax.Array
  weight: jax.Array
  grads: Any
  metrics: dict
  vars: Any


def by_group(objective, params, vars, batch, group_B, n: int, learnt: int, rng) -> Found:
  """Losses and gradients of the sums over the rows of each of `n` groups; rows of groups from
  `learnt` on move no variables and count in no metrics.
  """
  rows_KP, group_K = cut_up(group_B, n)

  def piece(vars, rows_P, rng):
    real_P = rows_P >= 0
    part = {k: jnp.where(expanded(real_P, v), v[rows_P], 0) for k, v in batch.items()}

    def total(p):
      out = objective.loss(p, vars, part, rng)
      return out.sum, out

    (_, out), grads = jax.value_and_grad(total, has_aux=True)(params)
    return out, grads, jnp.any(real_P)

  def add(found: Found, xs):
    rows_P, group, key = xs
    out, grads, some = piece(found.vars, rows_P, key)
    real = some & (group < learnt)
    into = lambda a, b: a.at[group].add(b.astype(a.dtype))
    new = Found(
      into(found.loss, out.sum),
      into(found.weight, out.weight),
      jax.tree.map(into, found.grads, grads),
      jax.tree.map(lambda a, b: a + jnp.where(real, b, 0), found.metrics, out.metrics),
      jax.tree.map(lambda a, b: jnp.where(real, b, a), found.vars, out.vars),
    )
    return new, None

  keys = jax.random.split(rng, group_K.size)
  shapes = jax.eval_shape(piece, vars, rows_KP[0], keys[0])[0].metrics
  zeros = Found(
    jnp.zeros((n,)),
    jnp.zeros((n,)),
    jax.tree.map(lambda p: jnp.zeros((n, *p.shape), p.dtype), params),
    jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes),
    vars,
  )
  return jax.lax.scan(add, zeros, (rows_KP, group_K, keys))[0]


def cut_up(group_B, n: int):
  """Rows in pieces of one group each: (indices (K, P), -1 where a piece is not full; groups (K,)).

  P is an n-th of the batch, and K what any division of the rows among the groups needs.
  """
  b = group_B.size
  p = max(1, b // n)
  k = (b + n * (p - 1)) // p
  order_B = jnp.argsort(group_B, stable=True)
  count_N = jnp.sum(group_B[:, None] == jnp.arange(n), axis=0)
  ends_N = jnp.cumsum(-(-count_N // p))  # pieces up to each group
  group_K = jnp.clip(jnp.searchsorted(ends_N, jnp.arange(k), side='right'), 0, n - 1)
  before_N = ends_N - -(-count_N // p)
  place_KP = (jnp.arange(k) - before_N[group_K])[:, None] * p + jnp.arange(p)
  real_KP = place_KP < count_N[group_K][:, None]
  start_N = jnp.cumsum(count_N) - count_N
  at_KP = jnp.clip(start_N[group_K][:, None] + place_KP, 0, b - 1)
  return jnp.where(real_KP, order_B[at_KP], -1), group_K


def expanded(x, like):
  """x with as many axes as `like`, the new ones last."""
  return x.reshape(*x.shape, *(1,) * (like.ndim - x.ndim))


def scale(x_N, like):
  return expanded(x_N, like).astype(like.dtype)


def dots(a, b):
  """float32 (n,): <a_i, b_i> over all leaves of trees (n, ...)."""
  product = lambda x, y: jnp.sum(
    x.astype(jnp.float32) * y.astype(jnp.float32), axis=tuple(range(1, x.ndim))
  )
  return sum(jax.tree.leaves(jax.tree.map(product, a, b)))


def products(a, b):
  """float32 (n, n): <a_i, b_j> over all leaves of trees (n, ...)."""

  def product(x, y):
    axes, exact = tuple(range(1, x.ndim)), jax.lax.Precision.HIGHEST
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    return jnp.tensordot(x, y, axes=(axes, axes), precision=exact)

  return sum(jax.tree.leaves(jax.tree.map(product, a, b)))
