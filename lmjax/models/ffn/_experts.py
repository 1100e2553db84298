"""Experts: feed-forward networks of one shape with weights of their own, stacked on the first axis.

  f(z) = z + r_1 + ... + r_S,   r_i = relu(LN(z + r_1 + ... + r_(i-1)) W_up,i) W_down,i

LN is a layer norm with gains (and biases) of its own in each expert; the W_down start from zero, so
that f does. Experts lie apart over the mesh axis `expert`; what ZeRO-3 cuts of
them is gathered where they are used.

Axes: E experts, C tokens of each, D width, F hidden.
"""

import jax
import jax.numpy as jnp

from lmjax.models.ffn import _sized
from lmjax.nn import params
from lmjax.parallel import remat
from lmjax.parallel import shard
from lmjax.parallel.facts import Fact

EPS = 1e-5
ZEROS = jax.nn.initializers.zeros


def weights(part, ctx, width: int) -> tuple[tuple[dict, ...], tuple[dict, ...]]:
  """(the parameters of each sublayer, gathered; their partition specs). `part` has experts,
  sublayers and the fields of `_sized.Sized`.
  """
  hidden = _sized.size(part, width)
  made = dict(
    scale=((width,), Fact(('expert', None), (), 'norm')),
    up=((width, hidden), Fact(('expert', 'embed', 'mlp'), ('embed',), 'hidden')),
    down=((hidden, width), Fact(('expert', 'mlp', 'embed'), ('mlp',), 'residual'), ZEROS),
  )
  if part.bias:
    made |= dict(
      shift=((width,), Fact(('expert', None), (), 'bias')),
      up_bias=((hidden,), Fact(('expert', 'mlp'), (), 'bias')),
      down_bias=((width,), Fact(('expert', 'embed'), (), 'bias')),
    )

  def one(i, name, shape, fact, init=None):
    value = params.param(part, f'{name}_{i}', (part.experts, *shape), fact, ctx.scheme, init)
    return shard.gather(value, fact.names)

  found = tuple({k: one(i, k, *how) for k, how in made.items()} for i in range(part.sublayers))
  return found, tuple(
    {k: shard.spec(how[1].names, gathered=True) for k, how in made.items()} for _ in found
  )


def residual(sublayers, x_ECD, inner: tuple[str, ...] = ()):
  """f(x) - x, expert by expert; `inner` are the mesh axes over which hidden units lie."""
  total = jnp.zeros_like(x_ECD)
  for w in sublayers:
    w = {k: v[:, None].astype(x_ECD.dtype) if v.ndim == 2 else v for k, v in w.items()}
    h_ECD = _normed(x_ECD + total) * w['scale'] + w.get('shift', 0)
    h_ECF = _product(h_ECD, w['up']) + w.get('up_bias', 0)
    h_ECF = remat.tag(jax.nn.relu(h_ECF), 'ffn_hidden')
    r_ECD = _product(h_ECF, w['down'])
    r_ECD = jax.lax.psum(r_ECD, inner) if inner else r_ECD
    total = total + r_ECD + w.get('down_bias', 0)
  return total


def _product(x_ECI, kernel_EIO):
  return jnp.einsum('eci,eio->eco', x_ECI, kernel_EIO.astype(x_ECI.dtype))


@jax.checkpoint
def _normed(x):
  """x with mean 0 and variance 1 over the last axis, float32 inside."""
  x32 = x.astype(jnp.float32)
  centered = x32 - jnp.mean(x32, axis=-1, keepdims=True)
  y = centered * jax.lax.rsqrt(jnp.mean(jnp.square(centered), axis=-1, keepdims=True) + EPS)
  return y.astype(x.dtype)
