"""SCALE: gradients of unit RMS for each output unit, momentum only at the output matrix.

  matrix, embedding:  update = g / max(rms(g), eps)
  output matrix:      m <- momentum m + (1 - momentum) g,   update = m / max(rms(m), eps)
  gains, biases:      `vectors`, Adam with b2 = 0.999

rms = sqrt(mean(g^2)) over the contracted axes, one divisor for each output unit: a row of the
unembedding (a token), a feature of the embedding, a column of a dense matrix. Glentis et al., 2025
(arXiv:2506.16659). The paper writes columns of norm 1; its code divides by the RMS, as here, and
its learning rates (1e-3 for 60M to 350M parameters, no decay, no clipping) assume that. Multiplying
the loss by a number changes no matrix's update, so that a clip in front does nothing for them.

The output matrix must be the head's own (`embed=untied()`): for a table that is both, the paper has
no rule, and it is refused. Learned positions are treated like the embedding. The code can give
vectors a learning rate of their own; here all follow one.

State: 4 bytes a parameter of the output matrix, 8 a parameter of the vectors, none for the rest.
Trap: tokens that a batch lacks have no update, those that it has get about sqrt(vocabulary /
different tokens) times the usual RMS.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lmjax.optim import _base, _groups, _nest, _tensors
from lmjax.registry import register


class Head(NamedTuple):
  m: Any


@register('optim', needs=lambda args: _groups.needs(args['vectors']))
def scale(
  momentum: float = 0.9,
  eps: float = 1e-8,
  vectors: _nest.Inner = 'adam(b1=0.9, b2=0.999)',
  *,
  facts,
) -> optax.GradientTransformationExtraArgs:
  """SCALE's direction; ValueError for momentum outside [0, 1), eps not above 0, a tied embedding,
  vectors with a learning rate of their own.
  """
  _base.decay_rate('scale.momentum', momentum)
  _base.positive('scale.eps', eps)
  _nest.check('scale.vectors', vectors)
  roles = {f.role for f in jax.tree.leaves(facts)}
  if 'embed' in roles and 'unembed' not in roles:
    raise ValueError(
      'scale has no rule for a table that is embedding and output matrix at once; an output matrix '
      'of its own is expected, as in config.model.embed=untied()'
    )

  def columns(fact, u):
    ins = tuple(fact.axes()[1])
    size = jnp.sqrt(jnp.mean(jnp.square(u), axis=ins, keepdims=True))
    return u / jnp.maximum(size, eps)

  def norm(updates, params=None):
    return _tensors.each(columns, facts, updates)

  def update_head(updates, state, params=None, **extra):
    m = _tensors.mix(momentum, state.m, updates)
    return norm(m), Head(m)

  head = optax.GradientTransformationExtraArgs(lambda p: Head(_tensors.zeros(p)), update_head)
  parts = dict(
    matrix=_base.in_float32(optax.stateless(norm)),
    head=_base.in_float32(head),
    vectors=_groups.build(vectors),
  )
  return _groups.grouped(parts, _group, facts)


def _group(fact) -> str:
  if not fact.is_matrix:
    return 'vectors'
  return 'head' if fact.role == 'unembed' else 'matrix'
