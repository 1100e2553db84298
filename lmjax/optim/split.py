"""One optimizer for the matrices inside layers, another for the rest.

  split(matrix=muon(), rest=adam())
  split(matrix=muon(scale="spectral") | decay(rate=0.01), rest=adam() | decay(), rest_lr=0.02)

`matrix` gets what facts call a hidden or residual matrix: attention, feed-forward and routers,
stacked or not. `rest` gets embeddings, unembedding, positions, gains, biases and whatever has no
fact. This is the division of Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon).
Each side is a part or a chain of parts and sees only its own parameters: `clip` inside a side takes
the norm of that side.

One learning rate and schedule serve both; updates of `rest` are multiplied by `rest_lr` (its decay
as well, where it stands inside). Decay behind the whole, `split(...) | decay()`, is by the common
rate. State: that of the sides, a dictionary with `matrix` and `rest`.
"""

import jax
import optax

from lmjax.optim import _base, _groups, _nest
from lmjax.registry import register


@register('optim', needs=lambda args: _groups.needs(args['matrix'], args['rest']))
def split(
  matrix: _nest.Inner,
  rest: _nest.Inner = 'adam()',
  rest_lr: float = 1.0,
  *,
  facts,
) -> optax.GradientTransformationExtraArgs:
  """Two optimizers; ValueError for rest_lr not above 0, or a side that sets its own rate."""
  _base.positive('split.rest_lr', rest_lr)
  _nest.check('split.matrix', matrix)
  _nest.check('split.rest', rest)
  parts = dict(matrix=_groups.build(matrix), rest=_groups.build(rest))
  if rest_lr != 1:
    parts['rest'] = _scaled(parts['rest'], rest_lr)
  group = lambda f: 'matrix' if f.is_matrix and f.role in ('hidden', 'residual') else 'rest'
  return _groups.grouped(parts, group, facts)


def _scaled(inner, factor: float) -> optax.GradientTransformationExtraArgs:
  def update(updates, state, params=None, **extra):
    updates, state = inner.update(updates, state, params, **extra)
    return jax.tree.map(lambda u: u * factor, updates), state

  return optax.GradientTransformationExtraArgs(inner.init, update)
