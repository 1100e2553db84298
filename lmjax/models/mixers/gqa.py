"""Softmax attention with grouped keys and values: multi-head (kv_heads = heads), grouped, or
multi-query (kv_heads = 1).

  q = x W_q (H heads), k = x W_k, v = x W_v (G heads, each serving H/G of q)
  y = softmax(scale * q.k + bias, over the allowed keys) v W_o

Allowed keys: the same document, not padding, not later (`causal`) unless of the prefix, and less
than `window` back (both sides where not causal). `cap` bounds the logits by
cap * tanh(logits / cap) (Gemma 2).
`qk_norm` norms each head of q and k before rotation (Dehghani et al., 2023, arXiv:2302.05442; Qwen
3, OLMo 2 style). scale defaults to 1/sqrt(head_dim), or what the init part says (muP: ~1/head_dim).
Vaswani et al., 2017 (arXiv:1706.03762); Shazeer, 2019 (arXiv:1911.02150); Ainslie et al., 2023
(arXiv:2305.13245).
"""

import functools
from typing import Annotated

import flax.linen as nn
import jax.numpy as jnp

from lmjax import kinds
from lmjax.kernels.attention import attention
from lmjax.nn import params
from lmjax.parallel import remat
from lmjax.registry import Part, register


LARGEST = 1 << 16  # heads, and coordinates of one: slopes and rates of positions are constants


@register(
  'mixer',
  causal=lambda a: a['causal'],
  segments=True,
  prefix=lambda a: a['window'] is None,
  cache=lambda a: a['causal'],
  window=lambda a: a['window'],
  cuts=('sequence',),
)
class Gqa(nn.Module):
  """softmax(q.k) v with grouped keys and values."""

  head_dim: int = 64
  heads: int | None = None
  kv_heads: int | None = None
  causal: bool = True
  window: int | None = None
  bias: bool = False
  cap: float | None = None
  scale: float | None = None
  qk_norm: Annotated[Part | None, 'norm'] = None
  position: Annotated[Part | None, 'position'] = None

  @staticmethod
  def check(head_dim, heads, kv_heads, window, cap, scale, **_):
    if window is not None and window < 1:
      raise ValueError(f'window={window}: a positive number is expected')
    for key, value in dict(head_dim=head_dim, heads=heads, kv_heads=kv_heads).items():
      if value is not None and not 1 <= value <= LARGEST:
        raise ValueError(f'{key}={value}: a positive number of at most {LARGEST} is expected')
    if heads and kv_heads and heads % kv_heads:
      raise ValueError(f'heads={heads} does not divide by kv_heads={kv_heads}')
    for key, value in dict(cap=cap, scale=scale).items():
      if value is not None and value <= 0:
        raise ValueError(f'{key}={value}: a positive number or None is expected')

  @nn.nowrap
  def sizes(self, width: int) -> tuple[int, int]:
    """(heads, kv_heads) at this width. Raises ValueError where they do not divide."""
    if self.heads is None and width % self.head_dim:
      raise ValueError(
        f'mixer gqa: model.width={width} does not divide by head_dim={self.head_dim}'
      )
    heads = self.heads or width // self.head_dim
    kv_heads = self.kv_heads or heads
    if heads > LARGEST:
      raise ValueError(
        f'mixer gqa: model.width={width} and head_dim={self.head_dim} make {heads} heads, at most '
        f'{LARGEST} are accepted'
      )
    if heads % kv_heads:
      raise ValueError(f'mixer gqa: {heads} heads do not divide by kv_heads={kv_heads}')
    return heads, kv_heads

  @nn.nowrap
  def init_cache(self, kind, batch, length, width, dtype):
    if not self.causal:
      raise kinds.Unsupported(
        'mixer gqa(causal=False) cannot decode token by token; use causal=True'
      )
    _, kv_heads = self.sizes(width)
    return kind.obj(
      batch=batch,
      length=length,
      heads=kv_heads,
      head_dim=self.head_dim,
      dtype=dtype,
      window=self.window,
      **dict(kind.args),
    )

  @nn.nowrap
  def mixing_flops(self, width, length):
    """q.k and weights.v: 4 x heads x head_dim FLOPs a pair; a token pairs with `length` keys, or
    those the mask allows.
    """
    heads, _ = self.sizes(width)
    reach = min(self.window or length, length)
    if self.causal:  # token t sees min(t + 1, reach) keys
      allowed = (reach * (reach + 1) / 2 + (length - reach) * reach) / length
    else:
      allowed = min(length, 2 * reach - 1) if self.window else length
    return 4.0 * heads * self.head_dim * length, 4.0 * heads * self.head_dim * allowed

  @nn.compact
  def __call__(self, x_BTD, ctx, cache=None):
    if ctx.memory is not None:
      raise kinds.Unsupported('mixer gqa has no cross-attention')
    if cache is not None and not self.causal:
      raise kinds.Unsupported(
        'mixer gqa(causal=False) cannot decode token by token; use causal=True'
      )
    if ctx.segments_BT is not None:  # nothing of padding may reach a sum, not even NaN * 0
      x_BTD = jnp.where((ctx.segments_BT > 0)[..., None], x_BTD, 0)
    width = x_BTD.shape[-1]
    heads, kv_heads = self.sizes(width)
    position = ctx.scheme.position if self.position is None else self.position(parent=None)

    def project(name, axis, n):
      return params.dense(
        ctx, name, dict(embed=width), {axis: n, 'head_dim': self.head_dim}, bias=self.bias
      )(x_BTD)

    q_BTHK, k_BTGK, v_BTGK = (
      project('q', 'heads', heads),
      project('k', 'kv_heads', kv_heads),
      project('v', 'kv_heads', kv_heads),
    )
    if self.qk_norm is not None:
      q_BTHK, k_BTGK = (
        self.qk_norm(name='norm_q')(q_BTHK, ctx),
        self.qk_norm(name='norm_k')(k_BTGK, ctx),
      )
    q_BTHK = remat.tag(position.rotate(q_BTHK, ctx.positions_BT), 'qkv')
    k_BTGK, v_BTGK = (
      remat.tag(position.rotate(k_BTGK, ctx.positions_BT), 'qkv'),
      remat.tag(v_BTGK, 'qkv'),
    )

    k_pos, k_seg = ctx.positions_BT, ctx.segments_BT
    prefix = ctx.prefix_BT is not None and self.causal
    if prefix:  # as if it stood before all others; rotation has seen the true positions
      if self.window is not None:
        raise kinds.Unsupported('mixer gqa: a window and a prefix that all may see')
      k_pos = jnp.where(ctx.prefix_BT > 0, 0, k_pos)
    if cache is not None:
      segments = jnp.ones_like(ctx.positions_BT) if k_seg is None else k_seg
      cache, (k_BTGK, v_BTGK, k_pos, k_seg) = cache.append(k_BTGK, v_BTGK, k_pos, segments)
    bias = position.bias(heads, ctx.positions_BT, ctx.positions_BT if cache is None else k_pos)
    if ctx.folded and bias is not None:
      bias = functools.partial(position.bias, heads)
    if prefix and cache is not None and bias is not None:
      raise kinds.Unsupported(
        'mixer gqa: a cache does not keep where the tokens of a prefix stand, which '
        f'{type(position).__name__.lower()} needs'
      )
    y_BTHK = attention(
      q_BTHK,
      k_BTGK.astype(q_BTHK.dtype),
      v_BTGK.astype(q_BTHK.dtype),
      q_positions=ctx.positions_BT,
      k_positions=k_pos,
      q_segments=ctx.segments_BT,
      k_segments=k_seg,
      aligned=cache is None and not prefix,
      consecutive=not ctx.gaps,
      joined=ctx.joined and not ctx.gaps,
      causal=self.causal,
      window=self.window,
      folded=ctx.folded,
      cap=self.cap,
      scale=self.scale or ctx.scheme.init.attention_scale(self.head_dim),
      bias=bias,
    )
    y = params.dense(
      ctx,
      'out',
      {'heads': heads, 'head_dim': self.head_dim},
      dict(embed=width),
      role='residual',
      bias=self.bias,
    )(y_BTHK)
    return y, cache, {}
