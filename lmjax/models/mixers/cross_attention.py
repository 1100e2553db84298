"""Attention to an encoder's output: queries from the text, keys and values from `ctx.memory`.

  q = x W_q,  k = m W_k,  v = m W_v
  y = softmax(scale * q.k, over the memory of the same segment) v W_o

Every token of a segment sees all of the memory of that segment, in whatever order it stands:
nothing is rotated or biased, as in T5 (Raffel et al., 2020, arXiv:1910.10683, section 2.1). A
token without memory gets zero. `kv_heads`, `qk_norm` and `scale` as in `gqa`. Vaswani et al., 2017
(arXiv:1706.03762, section 3.2.3).

Its cache holds the keys and values of the memory: made when a prompt is read with `ctx.memory`, and
read where that is None.
"""

from typing import Annotated

from flax import struct
import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax import kinds
from lmjax.kernels.attention import attention
from lmjax.nn import params
from lmjax.registry import Part, register


@struct.dataclass
class Kept:
  """k, v: (B, S, heads, head_dim); segments: (B, S)."""

  k_BSHK: jax.Array
  v_BSHK: jax.Array
  segments_BS: jax.Array

  def back(self, dropped_B, most: int):
    """The same: the memory does not depend on what was written."""
    del dropped_B, most
    return self


@register('mixer', segments=True, cache=True, cross=True, prefix=True)
class CrossAttention(nn.Module):
  """softmax(q.k) v, keys and values of the memory."""

  head_dim: int = 64
  heads: int | None = None
  kv_heads: int | None = None
  bias: bool = False
  scale: float | None = None
  qk_norm: Annotated[Part | None, 'norm'] = None

  @staticmethod
  def check(head_dim, heads, kv_heads, scale, **_):
    for key, value in dict(head_dim=head_dim, heads=heads, kv_heads=kv_heads).items():
      if value is not None and not 1 <= value <= 1 << 16:
        raise ValueError(f'{key}={value}: a positive number of at most {1 << 16} is expected')
    if heads and kv_heads and heads % kv_heads:
      raise ValueError(f'heads={heads} does not divide by kv_heads={kv_heads}')
    if scale is not None and scale <= 0:
      raise ValueError(f'scale={scale}: a positive number or None is expected')

  @nn.nowrap
  def sizes(self, width: int) -> tuple[int, int]:
    """(heads, kv_heads) at this width. Raises ValueError where they do not divide."""
    if self.heads is None and width % self.head_dim:
      raise ValueError(
        f'mixer cross_attention: model.width={width} does not divide by head_dim={self.head_dim}'
      )
    heads = self.heads or width // self.head_dim
    kv_heads = self.kv_heads or heads
    if heads % kv_heads:
      raise ValueError(f'mixer cross_attention: {heads} heads do not divide by kv_heads={kv_heads}')
    return heads, kv_heads

  @nn.nowrap
  def init_cache(self, kind, batch, length, width, dtype):
    """Room for a memory of `length` tokens; the cache part does not matter."""
    del kind
    shape = (batch, length, self.sizes(width)[1], self.head_dim)
    zeros = jnp.zeros(shape, dtype)
    return Kept(zeros, zeros, jnp.zeros(shape[:2], jnp.int32))

  @nn.nowrap
  def mixing_flops(self, width, length):
    """4 x heads x head_dim FLOPs for a token and a token of the memory, taken as `length` long."""
    flops = 4.0 * self.sizes(width)[0] * self.head_dim * length
    return flops, flops

  @nn.nowrap
  def memory_flops(self, width) -> float:
    """Of keys and values, for a token of the memory."""
    return 4.0 * width * self.sizes(width)[1] * self.head_dim

  @nn.compact
  def __call__(self, x_BTD, ctx, cache=None):
    if ctx.memory is None and cache is None:
      raise kinds.Unsupported(
        'mixer cross_attention, as in residual pre_cross(), needs the memory of an encoder, which '
        'config.model.architecture=encoder_decoder(...) has'
      )
    if ctx.segments_BT is not None:
      x_BTD = jnp.where((ctx.segments_BT > 0)[..., None], x_BTD, 0)
    heads, kv_heads = self.sizes(x_BTD.shape[-1])
    q_BTHK = self._project(ctx, 'q', x_BTD, 'heads', heads)
    if self.qk_norm is not None:
      q_BTHK = self.qk_norm(name='norm_q')(q_BTHK, ctx)
    kept = cache if ctx.memory is None else self._keep(ctx, kv_heads, cache)
    y_BTHK = attention(
      q_BTHK,
      kept.k_BSHK.astype(q_BTHK.dtype),
      kept.v_BSHK.astype(q_BTHK.dtype),
      q_positions=ctx.positions_BT,
      k_positions=jnp.zeros_like(kept.segments_BS),
      q_segments=ctx.segments_BT,
      k_segments=kept.segments_BS,
      aligned=False,
      causal=False,
      scale=self.scale or ctx.scheme.init.attention_scale(self.head_dim),
    )
    outs = dict(embed=x_BTD.shape[-1])
    ins = {'heads': heads, 'head_dim': self.head_dim}
    y = params.dense(ctx, 'out', ins, outs, role='residual', bias=self.bias)(y_BTHK)
    return y, None if cache is None else kept, {}

  def _keep(self, ctx, kv_heads: int, cache) -> Kept:
    """Keys and values of the memory, in the dtypes of the cache where there is one."""
    hidden_BSD, segments_BS = ctx.memory
    hidden_BSD = jnp.where((segments_BS > 0)[..., None], hidden_BSD, 0)
    k_BSGK = self._project(ctx, 'k', hidden_BSD, 'kv_heads', kv_heads)
    v_BSGK = self._project(ctx, 'v', hidden_BSD, 'kv_heads', kv_heads)
    if self.qk_norm is not None:
      k_BSGK = self.qk_norm(name='norm_k')(k_BSGK, ctx)
    if cache is None:
      return Kept(k_BSGK, v_BSGK, segments_BS)
    if cache.k_BSHK.shape != k_BSGK.shape:
      raise ValueError(
        f'mixer cross_attention: a memory of {k_BSGK.shape[1]} tokens, the cache has room for '
        f'{cache.k_BSHK.shape[1]}'
      )
    return Kept(k_BSGK.astype(cache.k_BSHK.dtype), v_BSGK.astype(cache.v_BSHK.dtype), segments_BS)

  def _project(self, ctx, name: str, x, axis: str, n: int):
    outs = {axis: n, 'head_dim': self.head_dim}
    return params.dense(ctx, name, dict(embed=x.shape[-1]), outs, bias=self.bias)(x)
