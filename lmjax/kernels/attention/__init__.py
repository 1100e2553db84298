"""The attention operation: one entry point, ordered implementations.

`attention(...)` honours documents, padding, windows, soft-cap, a bias and grouped keys.
"""

from lmjax.kernels.attention import reference
from lmjax.kernels.attention import xla

IMPLEMENTATIONS = {'xla': xla.attention, 'reference': reference.attention}


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
    bias: float (B or 1, H, T, S), added after the cap.
    aligned: key i stands at query i's place in the row, so that whole blocks above the diagonal are
      skipped.
    implementation: a name in IMPLEMENTATIONS, or None for the first.

  Returns:
    (B, T, H, K) in the dtype of q; rows of segment 0 are zero.
  """
  if q_BTHK.shape[2] % k_BSGK.shape[2]:
    raise ValueError(
      f'attention: {q_BTHK.shape[2]} query heads do not divide by {k_BSGK.shape[2]} key heads'
    )
  if implementation is not None and implementation not in IMPLEMENTATIONS:
    raise ValueError(
      f'attention: no implementation {implementation!r}; there are {", ".join(IMPLEMENTATIONS)}'
    )
  run = IMPLEMENTATIONS[implementation or next(iter(IMPLEMENTATIONS))]
  scale = q_BTHK.shape[-1] ** -0.5 if scale is None else scale
  return run(
    q_BTHK,
    k_BSGK,
    v_BSGK,
    q_positions=q_positions,
    k_positions=k_positions,
    q_segments=q_segments,
    k_segments=k_segments,
    causal=causal,
    window=window,
    cap=cap,
    scale=scale,
    bias=bias,
    aligned=aligned,
  )
