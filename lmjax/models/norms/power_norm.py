"""Power norm: each feature over its quadratic mean in all tokens of the batches so far.

  x <- x / rms(x), over each of `groups` groups of a token's features; 0 groups: left as it is
  s = mean over tokens of x^2, padding left out
  z = x / sqrt(psi2 + eps),   y = g z + b,   then psi2 <- a psi2 + (1 - a) s

Statistics have the shape of the features, s and psi2 in float32. Shen et al., 2020
(arXiv:2003.07845), PN, with the published code's details and values. In the first `warmup` updates
of psi2 z = x / sqrt(s + eps), and before the last of them update k takes the running mean first,
psi2 <- psi2 (k - 1) / k + s / k; published runs warm up as long as the learning rate does.
Inference always divides by sqrt(psi2 + eps). Group scaling is a norm of each token by itself, so
that what the rest is worth shows with `groups=0` alone; published models have as many groups as
heads, the published module 1.

Backward, in place of the derivative of the statistics (u = g dy; nu is a state, 0 at first):

  u' = u - (1 - a) nu z,   dx = u' / sqrt(d + eps),   nu <- nu + mean over tokens of u' z

With nu_p = (1 - a) nu it is the paper's nu_p <- nu_p (1 - (1 - a) mean z^2) + (1 - a) mean u z. d
is s with `denominator="batch"`, as in the published code, or what the forward pass divided by with
`"running"`, as in the paper. dy is the slope of the loss's sum, so that nu does not depend on how
many tokens a batch has. Padding has no part in the statistics, so that its own dx is
u / sqrt(d + eps); the published code leaves it in the backward means. These are no derivatives of
the loss: Hessian products differentiate the formulas above.

`variant="batch"`, the paper's PN-V: z = x / sqrt(s + eps) in all of training, with its true
gradient; psi2, for inference, moves as above.

A causal model with batch statistics sees the future in training: s, in the warm-up and in PN-V,
holds later tokens of the row, also of other documents and rows. psi2 holds batches of the past
alone. Training and validation losses are therefore not of one quantity. Micro-batches have
statistics of their own, psi2 and nu passing from one to the next, so that their number matters;
`updates`, in `vars`, counts them. One without real tokens leaves all as it is. On a mesh
statistics are those of the whole (micro-)batch.
"""

import functools
import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax import kinds
from lmjax.nn import params
from lmjax.parallel.facts import Fact
from lmjax.registry import register


def group_scaled(x, groups: int, eps: float):
  """float32 x over the rms of each group of features."""
  x = x.astype(jnp.float32)
  if not groups:
    return x
  split = x if groups == 1 else x.reshape(*x.shape[:-1], groups, -1)
  split = split * jax.lax.rsqrt(jnp.mean(jnp.square(split), axis=-1, keepdims=True) + eps)
  return split.reshape(x.shape)


def token_mean(x, real):
  """Mean over all axes but the last, where `real`, of x's number of axes, or None for everywhere;
  0 where nothing is real.
  """
  axes = tuple(range(x.ndim - 1))
  if real is None:
    return jnp.mean(x, axes)
  each = math.prod(n for n, r in zip(x.shape[:-1], real.shape) if r == 1)
  return jnp.sum(jnp.where(real, x, 0.0), axes) / jnp.maximum(each * jnp.sum(real), 1)


@functools.partial(jax.checkpoint, static_argnums=(2, 3))  # keeps x alone, not also its squares
def second_moment(x, real, groups: int, eps: float):
  return token_mean(jnp.square(group_scaled(x, groups, eps)), real)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def divided(a: float, x, nu, by, back, real):
  """x / sqrt(by). Backward: the approximation above, with d + eps = back; nu's cotangent is its new
  value.
  """
  return x * jax.lax.rsqrt(by)


def _divided_forward(a, x, nu, by, back, real):
  z = divided(a, x, nu, by, back, real)
  return z, (z, nu, back, real)


def _divided_backward(a, kept, u):
  z, nu, back, real = kept
  pull = (1 - a) * nu * z
  u = u - (pull if real is None else jnp.where(real, pull, 0.0))
  return u * jax.lax.rsqrt(back), nu + token_mean(u * z, real), None, None, None


divided.defvjp(_divided_forward, _divided_backward)


@register('norm', scale_invariant=lambda args: args['groups'] > 0)
class PowerNorm(nn.Module):
  """y = g x / sqrt(psi2) + b."""

  a: float = 0.9
  warmup: int = 10_000
  groups: int = 1
  variant: Literal['running', 'batch'] = 'running'
  denominator: Literal['batch', 'running'] = 'batch'
  eps: float = 1e-5
  scale: bool = True
  bias: bool = True

  @staticmethod
  def check(a, warmup, groups, variant, denominator, eps, **_):
    if not 0 <= a < 1:
      raise ValueError(f'a={a}: at least 0 and below 1 is expected')
    if warmup < 0:
      raise ValueError(f'warmup={warmup}: a number of updates, at least 0, is expected')
    if groups < 0:
      raise ValueError(f'groups={groups}: a number of groups, or 0 for no scaling, is expected')
    if variant == 'batch' and denominator == 'running':
      raise ValueError(
        f'denominator={denominator!r}: variant="batch" has its true gradient; "batch" is expected'
      )
    if eps < 0:
      raise ValueError(f'eps={eps}: at least 0 is expected')

  @nn.compact
  def __call__(self, x, ctx):
    shape = x.shape[-1:]
    if self.groups and shape[0] % self.groups:
      raise ValueError(
        f'norm power_norm, of {"/".join(self.path)}: groups={self.groups} does not divide the width'
        f' {shape[0]}'
      )
    one = functools.partial(params.param, self, shape=shape, scheme=ctx.scheme)
    g = one('scale', fact=Fact((None,), (), 'norm')) if self.scale else None
    b = one('bias', fact=Fact((None,), (), 'bias')) if self.bias else None
    psi2 = self.variable('vars', 'psi2', jnp.ones, shape, jnp.float32)
    updates = self.variable('vars', 'updates', jnp.zeros, (), jnp.int32)
    train, nu = ctx.train and not self.is_initializing(), None
    if self.variant == 'running' and (train or self.is_initializing()):
      nu = self.variable('backward', 'nu', jnp.zeros, shape, jnp.float32).value
    if not train:
      return self._affine(_over_root, x, g, b, psi2.value + self.eps)
    self._once()
    real = _real(x, ctx)
    s = self._statistic(x, real, psi2.value)
    if nu is None:
      y = self._affine(_over_root, x, g, b, s + self.eps)
    else:
      by = jnp.where(updates.value < self.warmup, s, psi2.value)
      back = s if self.denominator == 'batch' else by
      divide = functools.partial(divided, self.a)
      y = self._affine(divide, x, g, b, nu, by + self.eps, back + self.eps, real)
    self._track(jax.lax.stop_gradient(s), real, psi2, updates)
    return y

  def _statistic(self, x, real, psi2):
    """s, which carries a gradient in PN-V alone; psi2 where all tokens are padding."""
    x = x if self.variant == 'batch' else jax.lax.stop_gradient(x)
    s = second_moment(x, real, self.groups, self.eps)
    return s if real is None else jnp.where(jnp.any(real), s, psi2)

  def _track(self, s, real, psi2, updates):
    """Update k = 1, 2, ... of psi2; s = psi2, where all is padding, leaves it to the bit."""
    k = updates.value + 1
    keep = self.a * jnp.where(k < self.warmup, 1 - 1 / k.astype(jnp.float32), 1.0)
    psi2.value += (1 - keep) * (s - psi2.value)
    updates.value = k if real is None else jnp.where(jnp.any(real), k, updates.value)

  def _affine(self, divide, x, g, b, *state):
    """g divide(scaled x, *state) + b. The backward pass makes all of it again from x."""

    @jax.checkpoint
    def fn(x, g, b, *state):
      y = divide(group_scaled(x, self.groups, self.eps), *state)
      y = y if g is None else y * g
      return (y if b is None else y + b).astype(x.dtype)

    return fn(x, g, b, *state)

  def _once(self):
    """A second use in one pass would move psi2 twice and add up the new values of nu."""
    if getattr(self, '_used', False):
      raise kinds.Unsupported(
        'norm power_norm keeps the statistics of one input, and a layer applies it to two; another '
        'residual or norm is expected'
      )
    object.__setattr__(self, '_used', True)


def _over_root(x, by):
  return x * jax.lax.rsqrt(by)


def _real(x, ctx):
  """Where tokens are no padding, with as many axes as x; None for everywhere."""
  if ctx.segments_BT is None:
    return None
  if x.shape[:2] != ctx.segments_BT.shape:
    raise kinds.Unsupported(
      f'norm power_norm: tokens of shape {x.shape[:2]} whose padding is not known (segments of '
      f'shape {ctx.segments_BT.shape}); another norm is expected here'
    )
  return (ctx.segments_BT > 0).reshape(x.shape[:2] + (1,) * (x.ndim - 2))
