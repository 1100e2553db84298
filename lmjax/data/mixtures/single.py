"""All rows from one source, the held-out losses of all sources measured before the first step.

A run of it tells how much learning from one source lowers the loss of each: the losses at the end
are in its last evaluation. `python -m lmjax.data.mixtures._graph` makes the graph of `skill_it`
from one such run a source.

config.data.valid has the sources in the order of config.data.train: a loss belongs to the source of
its name, and of several that one part reads the names are places in the sum (jsonl, jsonl_2).
"""

import dataclasses

import numpy as np

from lmjax.data.mixtures import _match
from lmjax.data.mixtures import _weights
from lmjax.registry import nearest, register


@register('mixture', needs=('valid_losses',))
@dataclasses.dataclass(frozen=True)
class Single:
  """The source of that name alone."""

  source: str
  rows = 0  # held-out rows of each source: all

  def init(self, names, weights, tokens):
    _match.several('single', names)
    _match.unweighted('single', names, weights)
    _weights.sizes(names, tokens)
    if self.source not in names:
      raise ValueError(
        f'single(source={self.source!r}): config.data.train has {", ".join(names)}'
        f'{nearest(self.source, names)}'
      )
    hot = np.array([float(n == self.source) for n in names])
    return dict(weights=hot, seen=np.zeros((), np.int64))

  def due(self, state) -> int | None:
    return None if state['seen'] else 0

  def update(self, state, observed):
    del observed
    return {**state, 'seen': np.ones((), np.int64)}

  def weights(self, state) -> np.ndarray:
    return state['weights']
