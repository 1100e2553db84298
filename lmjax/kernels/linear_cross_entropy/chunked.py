"""Logits of a chunk of tokens at a time, and their gradients at once.

Backward, with p_v = exp(z_v - lse), h_v = 1 for the target and n words:

  dz_v = w [(1 + 2 z_loss lse) p_v - (1 - s) h_v - s / n] scale (1 - (z_v / cap)^2)
  dx = dz W;   dW = dz^T x;   db = dz before scale and cap

The gradient of the sum is a multiple of what its weights say, so that the forward pass makes it
while a chunk's logits are there (three products of tokens and vocabulary, as many as with all
logits kept; nothing is computed again) and keeps dx and dW: as Liger-Kernel does (Hsu et al., 2024,
arXiv:2410.10989). Where a gradient comes from the nll of single tokens too, its chunks are computed
once more with what comes as weights.

On a mesh every device has some tokens and some words; maxima and sums of exponentials cross the
axes of words (Shoeybi et al., 2019, arXiv:1909.08053, section 3), dx does once behind the last
chunk, and dW is added up over tokens in float32 and scattered (ZeRO-3).

Axes: C tokens of a chunk, N tokens, V words of this device.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from lmjax.kernels.linear_cross_entropy import _pieces
from lmjax.kernels.linear_cross_entropy._rule import Losses, Rule, real, weighted
from lmjax.parallel import vocabulary

LOGITS = 2**25  # of a chunk, on one device
LEAST = 128  # tokens of a chunk, whatever that takes


def refuses(*, platform, unembed, tokens, dtype, twice) -> str:
  del platform, dtype, twice
  return _pieces.refuses(unembed, tokens)


def linear_cross_entropy(x_BTD, unembed_VD, bias_V, targets_BT, weights_BT, rule: Rule) -> Losses:
  return Losses(*_losses(rule, x_BTD, unembed_VD, bias_V, targets_BT, weights_BT))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _losses(rule, x, unembed, bias, targets, weights):
  return _run(rule, x, unembed, bias, targets, weights, False)[0][:3]


def _forward(rule, *given):
  given = [None if a is None else a.value for a in given]
  found, grads = _run(rule, *given, True)
  return found[:3], (given, found[3], grads)


def _backward(rule, kept, changes):
  (x, unembed, bias, targets, weights), loss_BT, grads = kept
  d_total, d_nll, _ = changes
  out = [None] * 5
  if not isinstance(d_total, SymbolicZero):
    out[:3] = jax.tree.map(lambda g: (d_total * g).astype(g.dtype), grads)
    out[4] = d_total * jnp.where(weights > 0, loss_BT, 0.0)
  if not isinstance(d_nll, SymbolicZero):
    plain = rule._replace(z_loss=0.0, label_smoothing=0.0)
    more = _run(plain, x, unembed, bias, targets, d_nll, True)[1]
    out[:3] = more if out[0] is None else jax.tree.map(jnp.add, tuple(out[:3]), more)
  cast = lambda a, g: None if g is None else g.astype(a.dtype)
  return cast(x, out[0]), cast(unembed, out[1]), *out[2:]


_losses.defvjp(_forward, _backward, symbolic_zeros=True)


def _run(rule, x, unembed, bias, targets, weights, grads: bool):
  """((sum, nll, hits, loss), gradients of the sum into x, W and b)."""
  here = functools.partial(_here, rule, grads)
  given = x, unembed, bias, targets, weights
  return _pieces.run(here, *given, found=('sum', *['token'] * 3), grads=grads)


def _here(rule, grads, axes, x, unembed, bias, targets, weights):
  """What `_run` gives, of the pieces of one device."""
  tokens, width = targets.size, x.shape[-1]
  size = chunk(tokens, len(unembed))
  pad = -tokens % size

  def cut(a, *rest):
    a = jnp.pad(a.reshape(tokens, *rest), ((0, pad), *[(0, 0)] * len(rest)))
    return a.reshape(-1, size, *rest)

  joined = lambda a, *rest: a.reshape(-1, *rest)[:tokens].reshape(*targets.shape, *rest)
  one = functools.partial(_chunk, rule, grads, axes.words, unembed.astype(x.dtype), bias)
  made = jax.tree.map(lambda a: jnp.zeros(a.shape, jnp.float32), (unembed, bias) if grads else ())
  made, (found, dx) = jax.lax.scan(one, made, (cut(x, width), cut(targets), cut(weights)))
  loss, nll, hits = map(joined, found)
  total = vocabulary.summed(weighted(loss, weights), axes.tokens)
  if not grads:
    return (total, nll, hits, loss), None
  unembed, bias = made
  dx = vocabulary.summed(joined(dx, width), axes.words).astype(x.dtype)
  return (total, nll, hits, loss), (
    dx,
    axes.scattered(unembed),
    None if bias is None else vocabulary.summed(bias, axes.tokens),
  )


def chunk(tokens: int, words: int) -> int:
  """Tokens of a chunk: a power of two, or all."""
  most = 2 ** int(math.log2(max(LEAST, LOGITS / words)))
  return min(tokens, most)


def _chunk(rule, grads, axes, unembed, bias, made, given):
  """(gradients so far, ((loss, nll, hits), dx)) with those of one chunk."""
  x_CD, target_C, weight_C = given
  words = len(unembed)
  over = lambda f, a: f(a, axes) if axes else a
  dot = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
  z_CV, bent = dot(x_CD, unembed.T) * rule.scale, None
  if rule.cap is not None:
    bent = jnp.tanh(z_CV / rule.cap)
    z_CV = rule.cap * bent
  if bias is not None:
    z_CV = z_CV + bias
  top_C1 = over(jax.lax.pmax, jnp.max(z_CV, axis=-1, keepdims=True))
  e_CV = jnp.exp(z_CV - top_C1)
  total_C1 = over(jax.lax.psum, jnp.sum(e_CV, axis=-1, keepdims=True))
  lse_C = (top_C1 + jnp.log(total_C1))[:, 0]
  first = jax.lax.axis_index(axes) * words if axes else 0
  hot_CV = jax.lax.broadcasted_iota(jnp.int32, z_CV.shape, 1) == target_C[:, None] - first
  right_C = over(jax.lax.psum, jnp.sum(jnp.where(hot_CV, z_CV, 0.0), axis=-1))
  nll_C = lse_C - right_C
  loss_C, s = nll_C, rule.label_smoothing
  if s:
    real_V = real(bias, words)
    count = over(jax.lax.psum, jnp.sum(real_V.astype(jnp.float32)))
    mean_C = over(jax.lax.psum, jnp.sum(jnp.where(real_V, z_CV, 0.0), axis=-1)) / count
    loss_C = (1 - s) * nll_C + s * (lse_C - mean_C)
  if rule.z_loss:
    loss_C = loss_C + rule.z_loss * jnp.square(lse_C)
  found = loss_C, nll_C, (right_C >= top_C1[:, 0]).astype(jnp.float32)
  if not grads:
    return made, (found, None)

  p_CV = e_CV * ((1 + 2 * rule.z_loss * lse_C)[:, None] / total_C1)
  dz_CV = p_CV - (1 - s) * hot_CV
  if s:
    dz_CV = dz_CV - jnp.where(real_V, s / count, 0.0)
  dz_CV = jnp.where(weight_C[:, None] != 0, dz_CV * weight_C[:, None], 0.0)
  d_unembed, d_bias = made
  if bias is not None:
    d_bias = d_bias + jnp.sum(dz_CV, axis=0)
  if bent is not None:
    dz_CV = dz_CV * (1 - bent * bent)
  dz_CV = (dz_CV * rule.scale).astype(x_CD.dtype)
  d_unembed = d_unembed + dot(dz_CV.T, x_CD)
  return (d_unembed, d_bias), (found, dz_CV @ unembed)
