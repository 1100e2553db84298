"""The delta rule: a linear memory that is corrected towards each value before it is read.

  u_t = beta_t (v_t - k_t S_{t-1}),   S_t = S_{t-1} + k_t^T u_t,   o_t = q_t S_t

S is (K, V), rows are vectors. It is one step of rate beta on |k S - v|^2 / 2; with |k| = 1 and beta
in (0, 1) the eigenvalues of S's transition lie in (0, 1]. Yang et al., 2024 (arXiv:2406.06484).

  mosaic     TPUs, rows of 64 tokens or more: what belongs to a chunk stays on the chip
  chunked    everything, anywhere: matrix products, and a scan over chunks
  reference  token by token
"""

import jax.numpy as jnp

from lmjax.kernels import choice
from lmjax.kernels.choice import Implementation
from lmjax.kernels.delta_rule import chunked
from lmjax.kernels.delta_rule import mosaic
from lmjax.kernels.delta_rule import reference
from lmjax.parallel import shard

IMPLEMENTATIONS = {
  'mosaic': Implementation(mosaic.delta_rule, mosaic.refuses),
  'chunked': Implementation(chunked.delta_rule),
  'reference': Implementation(reference.delta_rule),
}


def delta_rule(
  q_BTHK, k_BTHK, v_BTHV, beta_BTH, *, starts_BT=None, state_BHKV=None, implementation=None
):
  """(o_BTHV, state_BHKV): what every token reads, and the memory behind the last.

  Args:
    q_BTHK, k_BTHK, v_BTHV: one dtype; the memory and what leads to it are float32.
    beta_BTH: how much of the difference is written; a token of beta 0 writes nothing.
    starts_BT: bool, tokens before which the memory is emptied, or None.
    implementation: a name in IMPLEMENTATIONS; None for what config.kernels.delta_rule says.
    state_BHKV: the memory before the first token, float32, or None for an empty one.

  Returns:
    o in the dtype of v, state in float32.
  """
  batch, steps, heads, k = q_BTHK.shape
  if starts_BT is None:
    starts_BT = shard.shard(jnp.zeros((batch, steps), bool), 'batch', None)
  if state_BHKV is None:
    state_BHKV = jnp.zeros((batch, heads, k, v_BTHV.shape[-1]), jnp.float32)
    state_BHKV = shard.shard(state_BHKV, 'batch', 'heads', None, None)
  facts = dict(q=q_BTHK, v=v_BTHV, twice=choice.twice())
  run = choice.pick('delta_rule', IMPLEMENTATIONS, implementation, **facts)
  beta_BTH = beta_BTH.astype(jnp.float32)
  return run(q_BTHK, k_BTHK, v_BTHV, beta_BTH, starts_BT, state_BHKV)
