"""Rotary positions: pairs of coordinates of q and k turn by the angle p * base^(-2i/K), so q.k
depends on distance alone.

Su et al., 2021 (arXiv:2104.09864). `pairs='half'` joins coordinate i with i + K/2 (GPT-NeoX, Llama
in Hugging Face's layout), 'interleaved' joins 2i with 2i + 1 (the paper, Meta's Llama weights).
`fraction` rotates only the first part of each head (GPT-NeoX: 0.25). Longer contexts:
`scaling='linear'` divides positions by `factor` (Chen et al., 2023, arXiv:2306.15595); 'ntk' raises
the base by factor^(K/(K-2)); 'llama3' stretches only slow waves (Llama 3.1: factor 8, low 1, high
4, original 8192). Angles are float32; a float32 angle at position 1e5 still errs by less than 0.01.
"""

import math
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from lmjax.models.positions import _base
from lmjax.registry import register


def rates(
  size: int, base: float, scaling, factor: float, low: float, high: float, original: int
) -> np.ndarray:
  """Radians per position of each pair, float64 (size // 2,)."""
  if scaling == 'ntk':
    if size < 4:
      raise ValueError(
        f'position rope: scaling="ntk" needs at least 4 rotated coordinates, the mixer\'s head_dim '
        f'leaves {size}'
      )
    base = base * factor ** (size / (size - 2))
  r = base ** (-np.arange(0, size, 2, dtype=np.float64) / size)
  if scaling == 'linear':
    return r / factor
  if scaling == 'llama3':
    turns = original * r / (2 * math.pi)
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return (1 - smooth) * r / factor + smooth * r
  return r


@register('position', relative=True)
class Rope(_base.Position):
  """q and k turned by position."""

  base: float = 10_000.0
  pairs: Literal['half', 'interleaved'] = 'half'
  fraction: float = 1.0
  scaling: Literal['none', 'linear', 'ntk', 'llama3'] = 'none'
  factor: float = 1.0
  low: float = 1.0
  high: float = 4.0
  original: int = 8192

  @staticmethod
  def check(base, fraction, factor, low, high, original, **_):
    if base <= 1:
      raise ValueError(f'base={base}: a number above 1 is expected')
    if not 0 < fraction <= 1:
      raise ValueError(f'fraction={fraction}: above 0 and at most 1 is expected')
    if factor < 1:
      raise ValueError(f'factor={factor}: at least 1 is expected')
    if low >= high:
      raise ValueError(f'low={low}, high={high}: low below high is expected')
    if original < 1:
      raise ValueError(f'original={original}: a positive number of tokens is expected')

  @nn.nowrap
  def rotate(self, x_BTHK, positions_BT):
    size = int(x_BTHK.shape[-1] * self.fraction) // 2 * 2
    if size < 2:
      raise ValueError(
        f'position rope: head_dim {x_BTHK.shape[-1]} of the mixer leaves no pair to rotate '
        f'(fraction={self.fraction})'
      )
    r = rates(size, self.base, self.scaling, self.factor, self.low, self.high, self.original)
    angles = positions_BT[..., None].astype(jnp.float32) * jnp.asarray(r, jnp.float32)
    sin, cos = jnp.sin(angles)[:, :, None], jnp.cos(angles)[:, :, None]
    turned, kept = x_BTHK[..., :size].astype(jnp.float32), x_BTHK[..., size:]
    if self.pairs == 'half':
      a, b = jnp.split(turned, 2, axis=-1)
      out = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    else:
      a, b = turned[..., 0::2], turned[..., 1::2]
      out = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(turned.shape)
    return (
      jnp.concatenate([out.astype(x_BTHK.dtype), kept], axis=-1)
      if kept.shape[-1]
      else out.astype(x_BTHK.dtype)
    )
