"""DeltaNet's layer without its rule: what is written is added, and nothing is taken away before.

  S_t = S_{t-1} + k_t^T b_t v_t,   o_t = q_t S_t / sqrt(head_dim)

Everything else is mixer `deltanet`, parameters and their initial values included, so that the two
differ in the term -k_t S_{t-1} alone. That is linear attention (Katharopoulos et al., 2020,
arXiv:2006.16236), here in its quadratic form, for training on short rows; it does not decode.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from lmjax import kinds
from lmjax.models.mixers import deltanet
from lmjax.nn import params
from lmjax.nn import short_conv
from lmjax.registry import register


@register('mixer', causal=True, segments=True)
class LinearAttention(deltanet.Deltanet):
  """sum over i <= t of (q_t . k_i) b_i v_i; arguments are those of `deltanet`."""

  @nn.nowrap
  def init_cache(self, kind, batch, length, width, dtype):
    raise kinds.Unsupported('mixer linear_attention keeps nothing to decode with')

  @nn.compact
  def __call__(self, x_BTD, ctx, cache: Any = None):
    if cache is not None or ctx.memory is not None:
      raise kinds.Unsupported('mixer linear_attention has no cache and no cross-attention')
    width = x_BTD.shape[-1]
    heads, values = self.sizes(width)
    now_BT = jnp.ones_like(ctx.positions_BT) if ctx.segments_BT is None else ctx.segments_BT
    x_BTD = jnp.where(now_BT[..., None] > 0, x_BTD, 0)
    past = max(self.taps - 1, 0)
    segments_BS = jnp.pad(now_BT, ((0, 0), (past, 0)))

    def project(name, *sizes):
      axes = dict(zip(('heads', 'head_dim'), (heads, *sizes)))
      return params.dense(ctx, name, dict(embed=width), axes)(x_BTD)

    def convolved(name, size):
      x = project(name, size)
      if not self.taps:
        return x
      conv = short_conv.ShortConv(self.taps, ('heads', 'head_dim'), name=f'conv_{name}')
      return conv(x, segments_BS, ctx, jnp.zeros((len(x), past, *x.shape[2:]), x.dtype))

    feature = deltanet.FEATURES[self.feature]
    q, k = (self.unit(feature(convolved(name, self.head_dim))) for name in 'qk')
    v = nn.silu(convolved('v', values))
    beta_BTH = self.strength(x_BTD, heads, ctx)
    o_BTHV = attend(q * self.head_dim**-0.5, k, v, beta_BTH, now_BT)
    if self.norm is not None:
      o_BTHV = self.norm(name='norm')(o_BTHV, ctx)
    if self.gate:
      o_BTHV = o_BTHV * nn.silu(project('gate', values))
    o_BTHV = jnp.where(now_BT[..., None, None] > 0, o_BTHV, 0)
    axes = {'heads': heads, 'head_dim': values}
    y = params.dense(ctx, 'out', axes, dict(embed=width), role='residual')(o_BTHV)
    return y, None, {}


def attend(q_BTHK, k_BTHK, v_BTHV, beta_BTH, segments_BT):
  """o_BTHV in the dtype of v, sums in float32: of tokens of the same document, up to each."""
  steps = segments_BT.shape[1]
  same_BTS = (segments_BT[:, :, None] == segments_BT[:, None]) & (segments_BT[:, None] > 0)
  seen_BHTS = (same_BTS & jnp.tri(steps, dtype=bool))[:, None]
  scores_BHTS = jnp.einsum('bthk,bshk->bhts', q_BTHK, k_BTHK, preferred_element_type=jnp.float32)
  written_BSHV = beta_BTH[..., None] * v_BTHV.astype(jnp.float32)
  o_BTHV = jnp.einsum('bhts,bshv->bthv', jnp.where(seen_BHTS, scores_BHTS, 0), written_BSHV)
  return o_BTHV.astype(v_BTHV.dtype)
