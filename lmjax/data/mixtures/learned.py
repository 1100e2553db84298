"""The weights that a finished proxy run has learnt: their average over all its steps.

p_i = mean over t of a_i^t, the metric `mean_weight/<source>` of the proxy's last step, as of the
objectives `doremi` and `doge`. Sources are matched by what they read, not by their place in the
sum. The proxy's directory is read at every start. A source to which the proxy gave no weight at all
(a target out of domain) must not be in the mixture.
"""

import dataclasses

import numpy as np

from lmjax.data.mixtures import _match
from lmjax.data.mixtures import _proxy
from lmjax.data.mixtures import _weights
from lmjax.registry import register


@register('mixture')
@dataclasses.dataclass(frozen=True)
class Learned:
  """The average weights of the proxy run in the directory `run`."""

  sources: dict[str, str]
  run: str

  @staticmethod
  def check(run):
    if not run:
      raise ValueError("run='': the directory of a finished proxy run is expected")

  def init(self, names, weights, tokens):
    _weights.sizes(names, tokens)
    _match.unweighted('learned', names, weights)
    where = f'learned(run={self.run!r})'
    theirs, found = _proxy.read(self.run, where)
    ours = {n: self.sources[n] for n in names}
    of = _match.matched(where, ours, theirs)
    for name, place in zip(names, of):
      if found[place] <= 0:
        raise ValueError(f'{where}: its weight of the source {name} is 0; leave that source out')
    left = [n for n in theirs if n not in of and found[n] > 0]
    if left:
      raise ValueError(
        f'{where}: its source {left[0]}={theirs[left[0]]} has the weight {found[left[0]]:.4g} and '
        'is not in config.data.train; all that it weighed are expected'
      )
    return dict(weights=_weights.normalised([found[n] for n in of]))

  def update(self, state, observed):
    del observed
    return state

  def weights(self, state) -> np.ndarray:
    return state['weights']
