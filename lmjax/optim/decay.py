"""Decoupled weight decay: adds rate x parameter to the update.

  update <- update + rate p        so that a step is   p <- p - lr (update + rate p)

Loshchilov and Hutter, 2017 (arXiv:1711.05101), in the form of PyTorch and Optax: the shrinkage of a
step is lr x rate and follows the schedule (and the parameterization's factor of the rate). Its
place in the chain matters: behind `adam` it is AdamW, in front of it L2 regularization.

`only='matrices'` decays what maps activations, and the embeddings, input and output: every tensor
with at least two axes besides stacked layers or experts, as nanoGPT does for GPT-2. Norms, biases
and whatever has no fact are left alone, and so are positions, which nanoGPT decays. Some recipes
leave the embeddings out too. `only='all'` decays everything. No state.
"""

import math
from typing import Literal

import jax
import optax

from lmjax.optim import _base
from lmjax.registry import register


@register('optim')
def decay(
  rate: float = 0.1,
  only: Literal['matrices', 'all'] = 'matrices',
  *,
  facts,
) -> optax.GradientTransformationExtraArgs:
  """Adds rate x parameter where `facts` say; ValueError for a negative rate, an unknown `only`."""
  _base.require(0 <= rate < math.inf, 'decay.rate', rate, 'a finite number of at least 0')
  _base.require(only in ('matrices', 'all'), 'decay.only', only, "'matrices' or 'all'")

  def decayed(fact) -> bool:
    return only == 'all' or fact.is_matrix and fact.role != 'position'

  mask = jax.tree.map(decayed, facts)
  return _base.in_float32(optax.add_decayed_weights(rate, mask))
