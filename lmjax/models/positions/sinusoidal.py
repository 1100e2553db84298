"""Fixed waves added to the embedding: PE(p, 2i) = sin(p / base^(2i/D)), PE(p, 2i+1) = cos(p /
base^(2i/D)).

Vaswani et al., 2017 (arXiv:1706.03762), section 3.5; base = 10000 there. `scale` multiplies the
waves: with embeddings of standard deviation 0.02 waves of size 1 would drown the tokens, which the
paper avoids by scaling embeddings with sqrt(D).
"""

import jax.numpy as jnp

from lmjax.models.positions import _base
from lmjax.registry import register


def waves(positions, width: int, base: float):
  """(..., width) sines and cosines, interleaved, float32."""
  rates = base ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
  angles = positions[..., None].astype(jnp.float32) * rates
  pairs = jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1)
  return pairs.reshape(*positions.shape, -1)[..., :width]


@register('position', added=True)
class Sinusoidal(_base.Position):
  """x + scale * PE(position)."""

  base: float = 10_000.0
  scale: float = 0.02

  @staticmethod
  def check(base, **_):
    if base <= 1:
      raise ValueError(f'base={base}: a number above 1 is expected')

  def __call__(self, x_BTD, ctx):
    return x_BTD + (self.scale * waves(ctx.positions_BT, x_BTD.shape[-1], self.base)).astype(
      x_BTD.dtype
    )
