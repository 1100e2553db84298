"""The attention operation: one entry point, ordered implementations.

  all honour documents, padding, causality, windows and grouped keys

  cudnn      NVIDIA GPUs, bfloat16 and float16; no soft-cap, no bias; documents in rows that are not
             too long
  splash     TPUs; no bias, no cache, no prefix, no second derivative
  xla        everything, anywhere: blocks, with a backward pass of its own
  reference  everything, anywhere: as written
  tokamax    GPUs and TPUs, where installed; no bias; only when asked for

`auto` is the first that can; one that is asked for and cannot is an error that names those that
can.
"""

import jax
import jax.numpy as jnp

from lmjax.kernels import choice
from lmjax.kernels.attention import blocks
from lmjax.kernels.attention import context
from lmjax.kernels.attention import cudnn
from lmjax.kernels.attention import reference
from lmjax.kernels.attention import splash
from lmjax.kernels.attention import tokamax
from lmjax.kernels.attention import xla
from lmjax.kernels.choice import Implementation

IMPLEMENTATIONS = {
  'cudnn': Implementation(cudnn.attention, cudnn.refuses),
  'splash': Implementation(splash.attention, splash.refuses),
  'xla': Implementation(xla.attention),
  'reference': Implementation(reference.attention),
  'tokamax': Implementation(tokamax.attention, tokamax.refuses),
}


def attention(
  q_BTHK,
  k_BSGK,
  v_BSGK,
  *,
  q_positions,
  k_positions,
  q_segments=None,
  k_segments=None,
  causal=True,
  window=None,
  cap=None,
  scale=None,
  bias=None,
  aligned=True,
  consecutive=True,
  joined=False,
  folded='',
  implementation=None,
):
  """softmax(scale q.k + bias) v over the allowed keys.

  Args:
    q_BTHK: queries. k_BSGK, v_BSGK: keys and values of G heads; H is a multiple of G.
    q_positions, k_positions: int32 (B, T), (B, S); later keys are hidden where `causal`, keys
      `window` or more away always.
    q_segments, k_segments: int32 or None; queries see only keys of their own segment, and none of
      segment 0.
    cap: logits become cap * tanh(logits / cap).
    bias: float (B or 1, H, T, S), added after the cap, or a function of both positions that gives
      it and has no gradient.
    aligned: key i stands at query i's place in the row, so that whole blocks above the diagonal are
      skipped.
    consecutive: positions count places within a segment of an aligned row; none is left out.
    joined: segments are 1, then 0 for padding behind: kernels of aligned causal rows go without
      them.
    folded: '' unless rows are cut over devices and folded (`parallel.folding`): then how keys come
      to the queries, ring or all_gather.
    implementation: a name in IMPLEMENTATIONS; None for what config.kernels.attention says.

  Returns:
    (B, T, H, K) in the dtype of q; rows of segment 0 are zero.
  """
  if q_BTHK.shape[2] % k_BSGK.shape[2]:
    raise ValueError(
      f'attention: {q_BTHK.shape[2]} query heads do not divide by {k_BSGK.shape[2]} key heads'
    )
  scale = q_BTHK.shape[-1] ** -0.5 if scale is None else scale
  where = dict(q_positions=q_positions, k_positions=k_positions)
  where |= dict(q_segments=q_segments, k_segments=k_segments)
  if folded:
    if (asked := implementation or choice.asked('attention')) != choice.AUTO:
      raise ValueError(
        f'config.kernels.attention={asked!r} knows no rows that are cut over devices (config.mesh.'
        f'sequence); {choice.AUTO} is expected'
      )
    rule = blocks.Rule(causal, window, cap, scale, aligned)
    return context.attention(q_BTHK, k_BSGK, v_BSGK, **where, rule=rule, bias=bias, by=folded)
  how = dict(causal=causal, window=window, cap=cap, aligned=aligned)
  own = q_segments is k_segments
  behind = joined and causal and aligned and own  # no token sees the padding
  run = choice.pick(
    'attention',
    IMPLEMENTATIONS,
    implementation,
    q=_shape(q_BTHK),
    k=_shape(k_BSGK),
    segments='' if k_segments is None or behind else 'own' if own else 'other',
    bias=bias is not None,
    twice=choice.twice(),
    **how,
    consecutive=consecutive,
  )
  bias = bias(q_positions, k_positions) if callable(bias) else bias
  how |= dict(scale=scale, bias=bias)
  if not behind or k_segments is None or run in (xla.attention, reference.attention):
    return run(q_BTHK, k_BSGK, v_BSGK, **where, **how)
  where |= dict(q_segments=None, k_segments=None)
  y_BTHK = run(q_BTHK, k_BSGK, v_BSGK, **where, **how)
  return jnp.where((q_segments > 0)[..., None, None], y_BTHK, 0)


def _shape(x) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(x.shape, x.dtype)
