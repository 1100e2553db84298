"""LLM.int8(): weights and activations in int8, the few outlier features of the activations apart.

  W8 = round(W / s_w), s_w = max |W| / 127 of each output; the rest is done in the product, where
  features with max |X| >= tau are taken out in each forward pass: see the linear part `int8`

Weights are rounded once, with no data and no gradients; applied to the matrices of attention and
feed-forward, not to attention itself, norms, embeddings and the head. `tau=None` with scaling =
'vector', 'row', 'tensor' or 'zeropoint' are the plain methods that it is compared with.

The paper multiplies the outlier features with 16-bit weights. Here those are W8 s_w, unless `keep`
says otherwise: so many rows of each matrix stay in float16 beside their codes, those of the inputs
that were largest on calibration rows and reached tau. What is not the paper's is that calibration
chooses them, ahead of time. It matters where an outlier feature has weights that are small beside
the others of its output, which int8 rounds away: experiments/quantization, planted outliers.

The command tells the emergent outlier features: |x| >= 6 in at least a quarter of the layers and at
6 % of the positions. Dettmers et al., 2022 (arXiv:2208.07339).
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp
import numpy as np

from lmjax.registry import register

MOST, TINY = 127, 1e-30


@register('quantizer', calibration=lambda a: a['keep'] > 0, outliers=True)
@dataclasses.dataclass(frozen=True)
class LlmInt8:
  """int8 weights, one scale for each output or one for the matrix."""

  tau: float | None = 6.0
  scaling: Literal['vector', 'row', 'tensor', 'zeropoint'] = 'vector'
  keep: int = 0

  @staticmethod
  def check(tau, keep, **_):
    if tau is not None and tau < 0:
      raise ValueError(f'tau={tau}: at least 0, or None for no outliers, is expected')
    if not 0 <= keep <= 1000 or keep and tau is None:
      raise ValueError(f'keep={keep}: from 0 to 1000 rows, and 0 where tau=None, are expected')

  @property
  def linear(self) -> str:
    return f'int8(tau={self.tau}, scaling={self.scaling!r}, keep={self.keep})'

  def quantize(self, kernel_IO, inputs=None) -> dict:
    w = jnp.asarray(kernel_IO, jnp.float32)
    largest = jnp.max(jnp.abs(w), axis=0 if self.scaling == 'vector' else None, keepdims=True)
    scale = jnp.maximum(largest, TINY) / MOST
    codes = jnp.clip(jnp.round(w / scale), -MOST, MOST).astype(jnp.int8)
    out = dict(codes=codes, scale=scale[0])
    if self.keep:
      out |= self._kept(np.asarray(w), np.asarray(inputs.largest_I))
    return out

  def _kept(self, w_IO, largest_I) -> dict:
    """The rows of the largest inputs; place I, which is none, where fewer reached tau."""
    rows = np.argsort(-largest_I, kind='stable')[: self.keep]
    rows = rows[largest_I[rows] >= self.tau]
    kept = np.zeros((self.keep, w_IO.shape[1]), np.float16)
    kept[: len(rows)] = w_IO[rows]
    spare = np.full(self.keep - len(rows), len(w_IO))
    return dict(kept=kept, rows=np.concatenate([rows, spare]).astype(np.int32))
