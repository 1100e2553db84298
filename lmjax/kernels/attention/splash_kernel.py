"""The calls of splash attention, forward and backward, with what they cost.

Axes: B rows, H heads of queries, G of keys, T places, K head size.
"""

import functools

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
import numpy as np

from lmjax.kernels import cost
from lmjax.kernels import precision


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend(how, q_BHTK, k_BGTK, v_BGTK, segments_BT):
  """(B, H, T, K) of whole blocks. Padding sees padding: what comes of it means nothing."""
  run = lambda *given: _rows(how, given[3], *given[:3])
  return _stated(how, q_BHTK, run)(q_BHTK, k_BGTK, v_BGTK, segments_BT)


def _forward(how, q, k, v, segments):
  run = lambda q, k, v, segments: jax.vjp(functools.partial(_rows, how, segments), q, k, v)
  return _stated(how, q, run)(q, k, v, segments)


def _backward(how, pull, dy):
  return *_stated(how, dy, lambda pull, dy: pull(dy))(pull, dy), None


attend.defvjp(_forward, _backward)


def _rows(how, segments_BT, q_BHTK, k_BGTK, v_BGTK):
  _, heads, steps, _ = q_BHTK.shape
  n = how.block
  run = kernels.make_splash_mha_single_device(
    masks.MultiHeadMask([_mask(how, steps)] * heads),
    block_sizes=kernels.BlockSizes(
      block_q=n,
      block_kv=n,
      block_kv_compute=n,
      block_q_dkv=n,
      block_kv_dkv=n,
      block_kv_dkv_compute=n,
      block_q_dq=n,
      block_kv_dq=n,
    ),
    attn_logits_soft_cap=how.cap,
  )
  q_BHTK = q_BHTK * np.asarray(how.scale, q_BHTK.dtype)
  if segments_BT is None:
    return jax.vmap(run)(q_BHTK, k_BGTK, v_BGTK)
  one = lambda q, k, v, s: run(q, k, v, segment_ids=kernels.SegmentIds(s, s))
  return jax.vmap(one)(q_BHTK, k_BGTK, v_BGTK, segments_BT)


@functools.lru_cache(maxsize=64)  # one object, or else each layer is traced anew
def _mask(how, steps: int) -> masks.Mask:
  """Splash looks at every block of a mask before anything runs: in closed form here, else rows of
  131,072 would take it a minute.
  """
  return _Seen(how, steps)


class _Seen(masks.Mask):
  def __init__(self, how, steps: int):
    self.how, self.steps = how, steps
    if how.causal or how.window is not None:  # else there is nothing to ask inside of a block
      self.q_sequence, self.mask_function = np.arange(steps, dtype=np.int32), self._inside

  def _inside(self, q, k):
    found = [q >= k] if self.how.causal else []
    if self.how.window is not None:
      found.append(q - k < self.how.window)
      found += [] if self.how.causal else [k - q < self.how.window]
    return functools.reduce(lambda a, b: a & b, found)

  @property
  def shape(self):
    return self.steps, self.steps

  def __getitem__(self, spans):
    """A small array with the `any` and `all` of the block."""
    some, every = self.how.met(*spans)
    return np.array([[some, every]])


def _stated(how, like_BHTK, run):
  """`run` with what its kernels cost: the products of the blocks that are computed; operands and
  results, and two arrays of a block again for each.
  """
  rows, heads, steps, size = like_BHTK.shape
  n, blocks = how.block, rows * heads * how.blocks(steps)

  def of(eqn):
    return pl.CostEstimate(
      flops=int(blocks * cost.products(eqn.params['jaxpr'])),
      transcendentals=blocks * n * n * (1 if how.cap is None else 2),
      bytes_accessed=int(cost.moved(eqn) + blocks * 2 * n * size * like_BHTK.dtype.itemsize),
    )

  def precisely(*given):
    exact = precision.exact(like_BHTK.dtype)
    with jax.default_matmul_precision('highest' if exact else 'default'):
      return run(*given)

  return cost.stated(precisely, of)
