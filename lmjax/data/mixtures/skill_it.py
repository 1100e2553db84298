"""Skill-It: sources weigh by what learning from them does for the losses that are still high.

  A_ij = (L_j(0) - L_j(H)) / L_j(0) of a run on source i alone, H steps (the graph)
  p_i proportional to exp(eta sum_j A_ij)                      at first
  p_i proportional to exp(eta sum_j A_ij sum_s L_j^s)          over the last `window` rounds s

L^s is the vector of held-out losses after round s of `update_steps` steps. Each round begins from
uniform: what is multiplied lies within the window. The row of A is the source learnt from, which is
the one whose weight it makes. Chen et al., 2023 (arXiv:2307.14430), in the form of the released
re-implementation of arXiv:2411.05735: eta 0.2, window 3. That code takes losses in where its count
of steps is a multiple of a round, just after a round's first step, so that the weights follow the
losses one round late; here, as in the paper's algorithm, they are those behind the round.

config.data.valid has the sources in the order of config.data.train: a loss belongs to the source of
its name, and of several that one part reads the names are places in the sum (jsonl, jsonl_2).

`graph` is a file of `python -m lmjax.data.mixtures._graph`; the m runs behind it are part of the
method's cost, and the file says how many tokens they took. `rows`: held-out rows of each source
that a look takes, from its start; 0 takes all.
"""

import dataclasses

import numpy as np

from lmjax.data.mixtures import _graph
from lmjax.data.mixtures import _match
from lmjax.data.mixtures import _softmax
from lmjax.data.mixtures import _weights
from lmjax.registry import register


@register('mixture', needs=('valid_losses',))
@dataclasses.dataclass(frozen=True)
class SkillIt:
  """Weights from a graph of sources and the held-out losses of the last rounds."""

  sources: dict[str, str]
  graph: str
  eta: float = 0.2
  window: int = 3
  update_steps: int = 400
  rows: int = 0

  @staticmethod
  def check(graph, eta, window, update_steps, rows):
    if not graph:
      raise ValueError(
        'graph="": a file is expected, which python -m lmjax.data.mixtures._graph makes from one '
        'run for each source'
      )
    if eta < 0 or rows < 0:
      raise ValueError(f'eta={eta}, rows={rows}: at least 0 is expected')
    for name, value in dict(window=window, update_steps=update_steps).items():
      if value < 1:
        raise ValueError(f'{name}={value}: a positive number is expected')

  def init(self, names, weights, tokens):
    _match.several('skill_it', names)
    _match.unweighted('skill_it', names, weights)
    _weights.sizes(names, tokens)
    theirs, graph = _graph.read(self.graph)
    of = _match.matched(
      f'skill_it(graph={self.graph!r})', {n: self.sources[n] for n in names}, theirs
    )
    order = [list(theirs).index(n) for n in of]
    zero = lambda: np.zeros((), np.int64)
    return dict(
      graph=graph[np.ix_(order, order)],
      losses=np.zeros((self.window, len(names))),  # of the last rounds, the newest last
      round=zero(),
    )

  def due(self, state) -> int:
    return self.update_steps * (int(state['round']) + 1)

  def update(self, state, observed):
    losses = np.concatenate([state['losses'][1:], [observed['valid_losses']]])
    return {**state, 'losses': losses, 'round': state['round'] + 1}

  def weights(self, state) -> np.ndarray:
    by = state['losses'].sum(0) if state['round'] else np.ones(len(state['graph']))
    return _softmax.softmax(self.eta * state['graph'] @ by)
