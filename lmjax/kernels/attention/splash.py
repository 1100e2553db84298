"""Splash attention of JAX (`jax.experimental.pallas.ops.tpu.splash_attention`): one pass over
blocks of keys with a running softmax, in the TPU's own memory; logits never reach main memory.

Honours causality, windows, the soft-cap, grouped keys, documents and padding; no bias. Blocks that
causality or the window hide from all of their queries are not computed; documents are compared
inside a block. Backward, logits are made twice, once for dq and once for dk and dv: seven products
of a block, not five. Queries take up the scale before, in their own type.

Blocks are of 512 queries and 512 keys, MaxText's default (`sa_block_q` and the like in its
base.yml), or of 256 or 128 where a row is shorter or does not divide. Rows are padded to a multiple
of 128; shorter ones are refused, of which most would be padding. First derivatives only.
"""

from typing import NamedTuple

import jax.numpy as jnp

from lmjax.kernels.attention import pieces

LANES = 128
BLOCKS = (512, 256, 128)
LONGEST = 2**17  # what is known of the blocks of a row lies in a small memory
LARGEST = 256  # size of a head


def refuses(
  *, platform, q, k, causal, window, cap, bias, aligned, segments, consecutive, twice
) -> str:
  del causal, cap
  if platform != 'tpu':
    return f'splash runs on TPUs, this is for a {platform}'
  if twice:
    return 'splash has no second derivative'
  if bias:
    return 'splash takes no bias'
  if not aligned or q.shape[1] != k.shape[1]:
    return 'splash takes queries and keys of the same places, without a cache or a prefix'
  if segments == 'other':
    return 'splash takes queries and keys of the same segments'
  if window is not None and not consecutive:
    return 'splash counts a window in places, and tokens between these were left out'
  if q.dtype not in (jnp.bfloat16, jnp.float32) or k.dtype != q.dtype:
    return f'splash takes bfloat16 or float32, not {q.dtype} and {k.dtype}'
  if not LANES <= q.shape[1] <= LONGEST:
    return f'splash takes rows of {LANES} to {LONGEST} tokens, these have {q.shape[1]}'
  if q.shape[3] % 8 or not 8 <= q.shape[3] <= LARGEST:
    return f'splash takes heads of a multiple of 8 up to {LARGEST}, these have {q.shape[3]}'
  return pieces.refuses(q, k)


class How(NamedTuple):
  """The static arguments; block: queries and keys of one."""

  causal: bool
  window: int | None
  cap: float | None
  scale: float
  block: int

  @property
  def gaps(self) -> tuple[float, float]:
    """The least and the largest place of a query minus that of a key it may see."""
    far = float('inf') if self.window is None else self.window - 1
    return 0 if self.causal else -far, far

  def met(self, q: slice, k: slice) -> tuple[bool, bool]:
    """Whether (any, all) of the pairs in a block are allowed."""
    low, high = self.gaps
    least, most = q.start - k.stop + 1, q.stop - 1 - k.start
    return least <= high and most >= low, low <= least and most <= high

  def blocks(self, steps: int) -> int:
    """How many blocks of a row are computed."""
    spans = [slice(i, i + self.block) for i in range(0, steps, self.block)]
    return sum(self.met(q, k)[0] for q in spans for k in spans)


def padded(steps: int) -> tuple[int, int]:
  """(places of a row with its padding, those of a block)."""
  steps += -steps % LANES
  return steps, next(n for n in BLOCKS if steps % n == 0)


def attention(
  q,
  k,
  v,
  *,
  q_positions,
  k_positions,
  q_segments,
  k_segments,
  causal,
  window,
  cap,
  scale,
  bias,
  aligned,
):
  """(B, T, H, K) from q (B, T, H, K) and k, v (B, T, G, K), as far as `refuses` lets it."""
  del q_positions, k_positions, bias, aligned
  from lmjax.kernels.attention import splash_kernel  # half a second of imports

  steps = q.shape[1]
  longer, block = padded(steps)
  how = How(causal, window, cap, scale, block)
  segments = None if k_segments is None else q_segments
  if segments is None and longer > steps and not causal:
    segments = jnp.ones(q.shape[:2], jnp.int32)  # which tell the padding apart

  def one(q, k, v, segments):
    behind = lambda x: jnp.pad(x, ((0, 0), (0, longer - steps), *[(0, 0)] * (x.ndim - 2)))
    q, k, v = (behind(x).transpose(0, 2, 1, 3) for x in (q, k, v))
    longer_segments = None if segments is None else behind(segments)
    y = splash_kernel.attend(how, q, k, v, longer_segments).transpose(0, 2, 1, 3)[:, :steps]
    return y if segments is None else jnp.where((segments > 0)[..., None, None], y, 0)

  return pieces.run(one, q, k, v, segments)
