"""DeltaNet: a linear memory for each head, written by the delta rule.

  q = L2(silu(conv(x W_q))),  k = L2(silu(conv(x W_k))),  v = silu(conv(x W_v)),  b = sigmoid(x W_b)
  S_t = S_{t-1} + k_t^T b_t (v_t - k_t S_{t-1}),   o_t = q_t S_t / sqrt(head_dim)
  y = norm(o) W_o, the norm over each head;  with `gate`: (norm(o) silu(x W_g)) W_o

Schlag et al., 2021 (arXiv:2102.11174); Yang et al., 2024 (arXiv:2406.06484), whose layer this is:
`conv` is causal and depthwise with `taps` taps; no biases, no positions
(`model.position='none()'`); layers of rms norm and SwiGLU, heads of 128. `feature` and `sums` give
the older maps: elu + 1 or relu, divided by the sum of the head. `negative` doubles b, so that S's
transition may have eigenvalues down to -1 (Grazzi et al., 2024, arXiv:2411.12537).

The work grows linearly with the length (`kernels/delta_rule`, in chunks), the cache not at all: S
and the last taps - 1 inputs of the convolutions. Documents begin with an empty memory; padding
(segment 0) ends one, so that it belongs at the ends of rows or between documents. Hybrids are
stacks: '(delta, local)*6' with a block of `gqa(window=...)`, or full attention in two layers.
Traps: keys that are not of length 1 let S grow without bound; b belongs to the value and the key.
"""

from typing import Annotated, Any

from flax import struct
import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax import kinds
from lmjax.kernels.delta_rule import chunked
from lmjax.kernels.delta_rule import delta_rule
from lmjax.nn import params
from lmjax.nn import short_conv
from lmjax.parallel import remat
from lmjax.parallel import shard
from lmjax.parallel.facts import Fact
from lmjax.registry import Part, register

FEATURES = {'silu': nn.silu, 'elu': lambda x: nn.elu(x) + 1, 'relu': nn.relu}
LARGEST = 1 << 16


@struct.dataclass
class Memory:
  """state: S, float32 (B, H, K, V). inputs: name -> the convolution's last taps - 1 inputs.
  segments: of the last max(1, taps - 1) tokens, 0 where there were none.
  """

  state: jax.Array
  inputs: dict[str, jax.Array]
  segments: jax.Array


@register('mixer', causal=True, segments=True, cache=True, recurrent=True)
class Deltanet(nn.Module):
  """q S, S written by the delta rule."""

  head_dim: int = 128
  heads: int | None = None
  value_dim: int | None = None
  taps: int = 4
  feature: str = 'silu'
  sums: bool = False
  negative: bool = False
  gate: bool = False
  norm: Annotated[Part | None, 'norm'] = 'rms_norm(eps=1e-05)'

  @staticmethod
  def check(head_dim, heads, value_dim, taps, feature, sums, **_):
    for key, value in dict(head_dim=head_dim, heads=heads, value_dim=value_dim).items():
      if value is not None and not 1 <= value <= LARGEST:
        raise ValueError(f'{key}={value}: a positive number of at most {LARGEST} is expected')
    if not 0 <= taps <= 64:
      raise ValueError(f'taps={taps}: 0 for no convolution, or 1 to 64, is expected')
    if feature not in FEATURES:
      raise ValueError(f'feature={feature!r}: one of {", ".join(FEATURES)} is expected')
    if sums and feature == 'silu':
      raise ValueError(
        "sums=True with feature='silu': a sum of values of both signs may be 0; 'elu' or 'relu' is "
        'expected'
      )

  @nn.nowrap
  def sizes(self, width: int) -> tuple[int, int]:
    """(heads, value size of a head). Raises ValueError where head_dim does not divide the width."""
    if self.heads is None and width % self.head_dim:
      raise ValueError(
        f'mixer deltanet: model.width={width} does not divide by head_dim={self.head_dim}; give '
        'heads as well, or a head_dim that divides it'
      )
    return self.heads or width // self.head_dim, self.value_dim or self.head_dim

  @nn.nowrap
  def init_cache(self, kind, batch, length, width, dtype):
    """Of one size whatever the length and `kind`, which is about keys: there are none."""
    del kind, length
    heads, values = self.sizes(width)
    sizes = dict(q=self.head_dim, k=self.head_dim, v=values)
    past = lambda n: shard.shard(
      jnp.zeros((batch, max(self.taps - 1, 0), heads, n), dtype), 'batch', None, 'heads', None
    )
    state = jnp.zeros((batch, heads, self.head_dim, values), jnp.float32)
    seen = jnp.zeros((batch, max(self.taps - 1, 1)), jnp.int32)
    return Memory(
      shard.shard(state, 'batch', 'heads', None, None),
      {name: past(n) for name, n in sizes.items()},
      shard.shard(seen, 'batch', None),
    )

  @nn.nowrap
  def mixing_flops(self, width, length):
    """In chunks of C tokens, by head and token: 6 K V for the memory, 2 C (3 K + 2 V) for pairs in
    a chunk and C^2 for the inverse; all of it counts as allowed.
    """
    heads, v = self.sizes(width)
    k, c = self.head_dim, min(chunked.CHUNK, length)
    total = heads * (6.0 * k * v + 2.0 * c * (3 * k + 2 * v) + c * c)
    return total, total

  @nn.compact
  def __call__(self, x_BTD, ctx, cache: Any = None):
    if ctx.memory is not None:
      raise kinds.Unsupported('mixer deltanet has no cross-attention')
    width = x_BTD.shape[-1]
    heads, values = self.sizes(width)
    now_BT = jnp.ones_like(ctx.positions_BT) if ctx.segments_BT is None else ctx.segments_BT
    real_BT = now_BT > 0
    x_BTD = jnp.where(real_BT[..., None], x_BTD, 0)  # nothing of padding may reach a sum
    empty = lambda: self.init_cache(None, len(x_BTD), 0, width, x_BTD.dtype)
    old = empty() if cache is None else cache
    segments_BS = jnp.concatenate([old.segments, now_BT], axis=1)

    def project(name, *sizes):
      axes = dict(zip(('heads', 'head_dim'), (heads, *sizes)))
      return params.dense(ctx, name, dict(embed=width), axes)(x_BTD)

    def convolved(name, x):
      if not self.taps:
        return x
      conv = short_conv.ShortConv(self.taps, ('heads', 'head_dim'), name=f'conv_{name}')
      back = x.shape[1] + self.taps - 1
      return conv(x, segments_BS[:, -back:], ctx, old.inputs[name])

    inputs = dict(q=project('q', self.head_dim), k=project('k', self.head_dim))
    inputs |= dict(v=project('v', values))
    q, k, v = (convolved(name, x) for name, x in inputs.items())
    beta_BTH = self.strength(x_BTD, heads, ctx)
    feature = FEATURES[self.feature]
    o_BTHV, state = delta_rule(
      remat.tag(self.unit(feature(q)) * self.head_dim**-0.5, 'qkv'),
      remat.tag(self.unit(feature(k)), 'qkv'),
      remat.tag(nn.silu(v), 'qkv'),
      jnp.where(real_BT[..., None], beta_BTH, 0.0),
      starts_BT=now_BT != segments_BS[:, -now_BT.shape[1] - 1 : -1],
      state_BHKV=old.state,
    )
    if self.norm is not None:
      o_BTHV = self.norm(name='norm')(o_BTHV, ctx)
    if self.gate:
      o_BTHV = o_BTHV * nn.silu(project('gate', values))
    o_BTHV = jnp.where(real_BT[..., None, None], o_BTHV, 0)
    axes = {'heads': heads, 'head_dim': values}
    y = params.dense(ctx, 'out', axes, dict(embed=width), role='residual')(o_BTHV)
    if cache is not None:
      cache = Memory(state, _last(old.inputs, inputs), _tail(segments_BS, old.segments))
    return y, cache, {}

  def strength(self, x_BTD, heads: int, ctx):
    """b of every head, float32. W_b is a vector for each head, which no `model.linear` makes
    smaller.
    """
    fact = Fact(('embed', 'heads'), ('embed',), 'hidden')
    w_DH = params.param(self, 'beta', (x_BTD.shape[-1], heads), fact, ctx.scheme)
    b_BTH = params.contract(x_BTD, shard.gather(w_DH, fact.names), 1, params.act(('heads',)))
    return nn.sigmoid(b_BTH.astype(jnp.float32)) * (2.0 if self.negative else 1.0)

  @nn.nowrap
  def unit(self, x):
    """Heads of length 1, or of sum 1, in float32."""
    z = x.astype(jnp.float32)
    if self.sums:
      z = z / (jnp.sum(z, axis=-1, keepdims=True) + 1e-6)
    else:
      z = z * jax.lax.rsqrt(jnp.sum(jnp.square(z), axis=-1, keepdims=True) + 1e-6)
    return z.astype(x.dtype)


def _tail(x, like):
  """The end of x along time, as long as `like` and in its dtype."""
  return x[:, x.shape[1] - like.shape[1] :].astype(like.dtype)


def _last(old: dict, new: dict) -> dict:
  """What the convolutions need of the tokens so far."""
  joined = {k: jnp.concatenate([old[k], new[k].astype(old[k].dtype)], axis=1) for k in old}
  return {k: _tail(x, old[k]) for k, x in joined.items()}
