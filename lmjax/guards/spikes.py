"""Refusing the update of a step whose loss or gradient norm stands out from the steps before it.

  refuse where x > mean(x_window) + sigmas * std(x_window),   x = loss, and x = gradient norm

over the last `window` finite values of each, the step's own left out. Nothing is refused before
window / 2 values are there. The value is remembered even where the step is refused, so that a loss
that stays on another level becomes the normal one. As OLMo-core's `SkipStepOptimizer`, whose
defaults these are; that one waits for at least 20 values and, in 2026, also refuses values far
below the mean, which here are welcome.

The standard deviation is that of the sample (n - 1). Cost: two rings of `window` float32 numbers.
Trap: the loss falls fast at the start, which widens the window's spread and hides spikes there.
"""

import dataclasses

import jax
import jax.numpy as jnp

from lmjax.registry import register


LARGEST = 10**6  # steps; two rings of them are part of the state


@register('guard')
@dataclasses.dataclass(frozen=True)
class Spikes:
  """Refuses losses and gradient norms far above the last ones."""

  window: int = 128
  sigmas: float = 6.0

  @staticmethod
  def check(window, sigmas, **_):
    if not 2 <= window <= LARGEST:
      raise ValueError(f'window={window}: at least 2 and at most {LARGEST} steps are expected')
    if sigmas <= 0:
      raise ValueError(f'sigmas={sigmas}: a positive number of standard deviations is expected')

  def init(self) -> dict[str, jax.Array]:
    ring = lambda: jnp.full(self.window, jnp.nan, jnp.float32)
    return dict(loss=ring(), grad_norm=ring(), place=jnp.zeros((), jnp.int32))

  def judge(self, state, loss, grad_norm):
    found = dict(loss=loss, grad_norm=grad_norm)
    ok = jnp.logical_and(*(self._usual(state[k], x) for k, x in found.items()))
    # A value that is not finite would hide the spread of the others: it leaves its place empty.
    rings = {
      k: state[k].at[state['place']].set(jnp.where(jnp.isfinite(x), x, jnp.nan))
      for k, x in found.items()
    }
    return ok, dict(rings, place=(state['place'] + 1) % self.window)

  def _usual(self, ring, x):
    n = jnp.isfinite(ring).sum()
    limit = jnp.nanmean(ring) + self.sigmas * jnp.nanstd(ring, ddof=1)
    return (n < max(2, self.window // 2)) | (x <= limit)
