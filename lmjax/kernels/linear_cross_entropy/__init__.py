"""The unembedding and the cross-entropy of its logits, as one operation.

  z_v = cap tanh(scale (x . W_v) / cap) + b_v;   lse = log sum_v exp z_v;   nll = lse - z_y
  loss = (1 - s) nll + s mean_v(lse - z_v) + z_loss lse^2

The mean is over words with b_v > -1e29; others only round the vocabulary up. Logits and sums are
float32, whatever the dtype of x.

  chunked  anywhere: logits of some tokens at a time, and their gradients at once
  whole    anywhere, first where all logits are few, or no more numbers than W
  mosaic   TPUs, bfloat16 and float32: no logits in main memory, more products; on request
  triton   NVIDIA GPUs: of logits only gradients in main memory, more products; on request

`auto` is the first that can: chunks, until kernels were timed on a device. One that is asked for
and cannot is an error that names those that can. Kernels know no second derivative.
"""

from lmjax.kernels import choice
from lmjax.kernels.choice import Implementation
from lmjax.kernels.linear_cross_entropy import chunked
from lmjax.kernels.linear_cross_entropy import mosaic
from lmjax.kernels.linear_cross_entropy import triton
from lmjax.kernels.linear_cross_entropy import whole
from lmjax.kernels.linear_cross_entropy._rule import Losses, Rule, weighted as weighted
from lmjax.kernels.linear_cross_entropy.whole import logits as logits
from lmjax.parallel import shard

IMPLEMENTATIONS = {
  'chunked': Implementation(chunked.linear_cross_entropy, chunked.refuses),
  'whole': Implementation(whole.linear_cross_entropy),
  'mosaic': Implementation(mosaic.linear_cross_entropy, mosaic.refuses),
  'triton': Implementation(triton.linear_cross_entropy, triton.refuses),
}


def linear_cross_entropy(
  x_BTD,
  unembed_VD,
  targets_BT,
  weights_BT,
  *,
  bias_V=None,
  scale: float = 1.0,
  cap: float | None = None,
  z_loss: float = 0.0,
  label_smoothing: float = 0.0,
  implementation: str | None = None,
) -> Losses:
  """sum_t w_t loss_t, and what is known of each token.

  Gradients flow into x, W, b and w from the sum, and into x, W and b from the nll; none from
  `hits_BT`.

  Args:
    x_BTD: hidden vectors; products are in their dtype, summed in float32.
    unembed_VD: W; on a mesh whole along its width. targets_BT: y, int32. weights_BT: float32, at
      least 0; the target of a token of weight 0 may be anything.
    implementation: a name in IMPLEMENTATIONS; None for what config.kernels.linear_cross_entropy
      says.
  """
  known = dict(IMPLEMENTATIONS)
  words, width = unembed_VD.shape
  tokens = shard.held(('batch', 'time'), targets_BT.shape)
  few = tokens * shard.held(('vocab',), (words,)) <= chunked.LOGITS  # one chunk
  if few or tokens <= width:  # the gradient of W is as large
    known = dict(whole=known.pop('whole')) | known
  facts = dict(unembed=unembed_VD.shape, tokens=targets_BT.shape, dtype=x_BTD.dtype)
  run = choice.pick('linear_cross_entropy', known, implementation, **facts, twice=choice.twice())
  rule = Rule(scale, cap, z_loss, label_smoothing)
  return run(x_BTD, unembed_VD, bias_V, targets_BT, weights_BT, rule)
