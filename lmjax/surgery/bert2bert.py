"""bert2BERT: a trained model grows in width and in depth, and goes on from what it knows.

Every dimension that grows (the width, hidden units, heads) has one mapping g from its new places to
the old ones: the identity on the first D_s, uniform among the old ones afterwards. C_i is how many
places map to i. Rows of a matrix are what it reads, columns what it writes:

  U~[i, :] = W[g_in(i), :] / C_(g_in(i))
  fpi:   U[:, j] = U~[:, g_out(j)]
  aki:   as fpi for j < D_s;  U^l[:, j] = U~^(l+1)[:, g_out(j)] for j >= D_s
  copy:  W in the first places, this run's initial values in all others (the paper's baseline)
  depth: then all layers stacked again and again, what is left over taken from the top

Chen et al., 2021 (bert2BERT, arXiv:2110.07143); fpi is Net2Wider (Chen et al., 2015,
arXiv:1511.05641), stacking Gong et al., 2019 (StackBERT). Defaults are the paper's.

Embeddings, positions, biases and gains are copied. Heads are grown whole; `head_dim` never grows,
so that attention keeps its scale. With grouped heads the heads of keys and values are mapped first,
then the heads within each group; a group may grow, not shrink. Which axis is what follows from the
facts of parameters, so that every model of full matrices will do. What such a mapping cannot do is
refused: other kinds of layers, vocabularies, positions or head sizes, anything smaller, factored
and sparse matrices, variables that are not trained.

A tied table is copied as the embedding needs it. Its logits would count duplicates several times,
so that the gain (and bias) of the last norm is divided by C instead. A multiplier of the logits
that depends on the width (`mup`) is made up for at the same place.

What fpi preserves. Without norms, everything. A norm over the width takes its mean over
duplicates: the function is the same where all C_i are equal, and only near it elsewhere. `random`
draws unequal ones even from 64 to 128; `mapping="balanced"` goes round and round (g(j) = j mod
D_s), which is exact whenever the width is a multiple. Depth does not preserve the function.

Trap: under fpi duplicates have equal gradients and stay equal for good, unless something tells them
apart: dropout in the paper. Without dropout set `noise` (added columns of matrices inside layers
get normal noise of that share of the matrix's rms), or take aki, which is no duplicate.

`depth="interleave"` puts each layer several times in a row instead. The last layer has no next one:
under aki it takes its own columns. In a segment of several blocks the next layer is that of the
same place in the next round.

`optimizer="carry"` goes on with the optimizer's state: moments are copied where the matrix reads
and divided by C where it writes, as gradients are, second moments by C^2 (see `_grow`). Exact where
fpi is, an approximation under aki and in depth. Means of gradients and of their squares carry
(`adam`, `sgd`, `lion`, `muon`, ...), and counters; any other state is refused. The schedule begins
anew.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.registry import register
from lmjax.surgery import _grow
from lmjax.surgery import _grow_moments
from lmjax.surgery import _grow_plan


@dataclasses.dataclass(frozen=True)
class Grow:
  """A larger model from a smaller one; the optimizer begins anew."""

  run: str
  width: str
  depth: str
  mapping: str
  noise: float

  def __call__(self, old, new, rng) -> dict[str, Any]:
    plan, values = self._plan(old, new, rng), old.variables['params']

    def one(path, like):
      keys = tuple(k.key for k in path)
      growth, value = plan[keys], _grow_moments.at(values, keys)
      if self.width == 'copy':
        return placed(growth, value, like)
      return noisy(growth, growth.value(value), self.noise, rng, '/'.join(keys))

    return {
      **new.variables,
      'params': jax.tree_util.tree_map_with_path(one, new.variables['params']),
    }

  def _plan(self, old, new, rng):
    how = dict(how=self.mapping, depth=self.depth, ahead=self.width == 'aki')
    return _grow_plan.plan(old, new, rng, **how)


class Carry(Grow):
  """Grow, and the optimizer goes on."""

  def optimizer(self, old, new, old_opt, new_opt, rng) -> Any:
    return _grow_moments.carried(self._plan(old, new, rng), old, new, old_opt, new_opt)


@register('surgery')
def bert2bert(
  run: str,
  width: Literal['fpi', 'aki', 'copy'] = 'fpi',
  depth: Literal['stack', 'interleave'] = 'stack',
  optimizer: Literal['reset', 'carry'] = 'reset',
  mapping: Literal['random', 'balanced'] = 'random',
  noise: float = 0.0,
) -> Grow:
  """A larger model from that of `run`; only a surgery that carries has a method `optimizer`."""
  return (Carry if optimizer == 'carry' else Grow)(run, width, depth, mapping, noise)


def _check(width, optimizer, mapping, noise, **_):
  if not 0 <= noise < np.inf:
    raise ValueError(f'noise={noise}: a finite number of at least 0 is expected')
  if width == 'copy':
    for key, value, want in (
      ('optimizer', optimizer, 'reset'),
      ('mapping', mapping, 'random'),
      ('noise', noise, 0.0),
    ):
      if value != want:
        raise ValueError(f'{key}={value!r}: with width="copy", which maps nothing, only {want!r}')


bert2bert.check = _check  # a function, since `optimizer` is both an argument and a method


def placed(growth: _grow.Growth, value, like):
  """The old values in their first places of `like`, its own elsewhere."""
  place = lambda x: jax.device_put(np.broadcast_to(x, like.shape), like.sharding)
  old = place(growth.gathered(value).astype(like.dtype))
  return jnp.where(place(growth.fresh(growth.dims)), like, old)


def noisy(growth: _grow.Growth, value: np.ndarray, share: float, rng, name: str) -> np.ndarray:
  """The value with noise of a share of its rms, in added columns of a matrix inside layers."""
  if not share or growth.fact.role not in ('hidden', 'residual'):
    return value
  draw = _grow.generator(rng, f'noise {name}').standard_normal(value.shape)
  size = share * np.sqrt(np.mean(np.square(value)))
  return np.where(growth.fresh(growth.outs()), value + size * draw, value).astype(value.dtype)
