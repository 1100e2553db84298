"""What is around kernels that never keep logits: losses from sums over the words of each token,
gradients from four numbers of each token.

  top = max_v z_v;   total = sum_v exp(z_v - top);   lse = top + log total
  dz_v = [a exp(z_v - lse) - b h_v - c r_v] scale (1 - (z_v / cap)^2)
  a = w (1 + 2 z_loss lse) + g;   b = w (1 - s) + g;   c = w s / n

with h_v = 1 for the target, r_v = 1 for the n words that may be predicted, and g the gradient of a
token's nll. The backward pass makes logits once more and keeps of the forward pass one number a
token, where `chunked` keeps the gradients (Wijmans et al., 2024, arXiv:2411.09009; gradients are
exact here, none are left out). First derivatives only.

On a mesh every device has some tokens and some words, as in `chunked`: sums cross the axes of words
between the kernels.
"""

import functools
from typing import Callable, NamedTuple

import jax
from jax.custom_derivatives import SymbolicZero
import jax.numpy as jnp

from lmjax.kernels.linear_cross_entropy import _pieces
from lmjax.kernels.linear_cross_entropy._rule import Losses, Rule, real, weighted
from lmjax.parallel import vocabulary


class Sums(NamedTuple):
  """Of each token, over words. mean: the sum of the logits of words that may be predicted; None
  without label smoothing.
  """

  top_N: jax.Array
  total_N: jax.Array
  right_N: jax.Array
  mean_N: jax.Array | None


class Factors(NamedTuple):
  """What the gradient of a token's logits is made of, float32; a of 0: whatever lse is."""

  lse_N: jax.Array
  a_N: jax.Array
  b_N: jax.Array
  c_N: jax.Array


class Kernels(NamedTuple):
  """sums: (rule, x (N, D), W (V, D), bias (V) or None, targets (N)) -> Sums; a target is a row of
  W, or -1 for that of another device. grads: (the same, Factors) -> dx in the dtype of x, dW and db
  (None without bias) in float32.
  """

  sums: Callable[..., Sums]
  grads: Callable


def losses(kernels: Kernels, rule: Rule, x, unembed, bias, targets, weights) -> Losses:
  return Losses(*_losses(kernels, rule, x, unembed, bias, targets, weights))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _losses(kernels, rule, *given):
  return _find(kernels, rule, *given)[:3]


def _forward(kernels, rule, *given):
  given = [None if a is None else a.value for a in given]
  *found, loss, lse = _find(kernels, rule, *given)
  return tuple(found), (given, loss, lse)


def _backward(kernels, rule, kept, changes):
  (x, unembed, bias, targets, weights), loss, lse = kept
  d_total, d_nll, _ = changes
  by, d_weights = None, None
  if isinstance(d_total, SymbolicZero):
    w = jnp.zeros_like(weights)
  else:
    d_weights = d_total * jnp.where(weights > 0, loss, 0.0)
    w = weights
  if isinstance(d_nll, SymbolicZero):
    g, by = jnp.zeros_like(weights), d_total  # at the end: small in float16 otherwise
  else:
    g = d_nll
    w = w if d_weights is None else d_total * w
  rows = targets, lse, w, g
  here = functools.partial(_change, kernels, rule)
  grads = _pieces.run(here, x, unembed, bias, *rows, found=(), grads=True)[1]
  if by is not None:
    grads = jax.tree.map(lambda grad: by * grad, grads)
  cast = lambda a, grad: None if grad is None else grad.astype(a.dtype)
  return *map(cast, (x, unembed, bias), grads), None, d_weights


_losses.defvjp(_forward, _backward, symbolic_zeros=True)


def _find(kernels, rule, *given):
  """The sum, and nll, hits, loss and lse of each token."""
  here = functools.partial(_found, kernels, rule)
  return _pieces.run(here, *given, found=('sum', *['token'] * 4), grads=False)[0]


def _found(kernels, rule, axes, x, unembed, bias, targets, weights):
  """What `_find` gives, of the pieces of one device."""
  over = lambda f, a: f(a, axes.words) if axes.words else a
  x_ND, unembed, target_N = _flat(axes, x, unembed, targets)
  own = kernels.sums(rule, x_ND, unembed, bias, target_N)
  top_N = over(jax.lax.pmax, own.top_N)
  lse_N = top_N + jnp.log(over(jax.lax.psum, own.total_N * jnp.exp(own.top_N - top_N)))
  right_N = over(jax.lax.psum, own.right_N)
  loss_N = nll_N = lse_N - right_N
  if s := rule.label_smoothing:
    mean_N = over(jax.lax.psum, own.mean_N) / _count(axes, unembed, bias)
    loss_N = (1 - s) * nll_N + s * (lse_N - mean_N)
  if rule.z_loss:
    loss_N = loss_N + rule.z_loss * jnp.square(lse_N)
  hits_N = (right_N >= top_N).astype(jnp.float32)
  nll, hits, loss, lse = (a.reshape(targets.shape) for a in (nll_N, hits_N, loss_N, lse_N))
  return (vocabulary.summed(weighted(loss, weights), axes.tokens), nll, hits, loss, lse), None


def _change(kernels, rule, axes, x, unembed, bias, targets, lse, weights, g):
  """((), the gradients of x, W and b), of the pieces of one device."""
  x_ND, cast, target_N = _flat(axes, x, unembed, targets)
  lse_N, w_N, g_N = (a.reshape(-1) for a in (lse, weights, g))
  s = rule.label_smoothing
  factors = Factors(
    lse_N,
    jnp.where(w_N != 0, w_N * (1 + 2 * rule.z_loss * lse_N), 0.0) + g_N,
    w_N * (1 - s) + g_N,
    w_N * s / _count(axes, unembed, bias) if s else jnp.zeros_like(w_N),
  )
  dx, dw, db = kernels.grads(rule, x_ND, cast, bias, target_N, factors)
  dx = vocabulary.summed(dx, axes.words).reshape(x.shape)
  db = None if db is None else vocabulary.summed(db, axes.tokens)
  return (), (dx, axes.scattered(dw), db)


def _flat(axes, x, unembed, targets):
  """x (N, D), W in the dtype of x, and for each token its target among this device's words."""
  words = len(unembed)
  first = jax.lax.axis_index(axes.words) * words if axes.words else 0
  own = targets.reshape(-1) - first
  own = jnp.where((own >= 0) & (own < words), own, -1)
  return x.reshape(-1, x.shape[-1]), unembed.astype(x.dtype), own


def _count(axes, unembed, bias):
  """How many words may be predicted."""
  return vocabulary.summed(jnp.sum(real(bias, len(unembed)).astype(jnp.float32)), axes.words)


# ---- inside of kernels


def logits(rule: Rule, dots, bias):
  """(z, tanh of it under the cap or None), from x . W and biases of the same shape or None."""
  z, bent = dots * rule.scale, None
  if rule.cap is not None:
    bent = jnp.tanh(z / rule.cap)
    z = rule.cap * bent
  return (z if bias is None else z + bias), bent


def change(rule: Rule, z, bent, hot, bias, factors: Factors):
  """The gradients of (z, x . W), float32; hot: where words are targets."""
  lse, a, b, c = factors
  dz = jnp.where(a != 0, a * jnp.exp(z - lse), 0.0) - jnp.where(hot, b, 0.0)
  if rule.label_smoothing:
    dz = dz - (c if bias is None else jnp.where(bias > -1e29, c, 0.0))
  bends = 1.0 if bent is None else 1 - bent * bent
  return dz, dz * bends * rule.scale


def upwards(n: int, by: int) -> int:
  """The least multiple of `by` from n on."""
  return -(-n // by) * by


def padded(a, *shape, value=0.0):
  """With `value` behind each axis, up to this shape."""
  behind = [(0, n - m) for n, m in zip(shape, a.shape, strict=True)]
  return jnp.pad(a, behind, constant_values=value)


def biases(bias, words: int, longer: int):
  """(longer,) float32 with minus infinity for words that W was padded with; None where there is
  nothing to add.
  """
  if bias is None and words == longer:
    return None
  bias = jnp.zeros(words) if bias is None else bias
  return padded(bias.astype(jnp.float32), longer, value=-jnp.inf)
