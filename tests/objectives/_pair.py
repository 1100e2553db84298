"""Small pairs of `electra`, their losses, and batches for them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from lmjax import build
from lmjax import config

ROWS, T = 8, 32
MASK = 259  # of bytes()
SMALL = (
  ('model.width', '32'),
  ('model.depth', '1'),
  ('data.length', str(T)),
  ('batch_tokens', str(ROWS * T)),
  ('model.mixer', 'gqa(head_dim=8, causal=False)'),
  ('model.embed', 'tied(multiple_of=8)'),
  ('model.embed_norm', 'layer_norm()'),
  ('model.position', 'learned()'),
)


def made(spec='electra()', *changes):
  return build.build(
    config.resolve(config.load('quickstart', [*SMALL, ('objective', spec), *changes]))
  )


# A table of half the width, with positions and a norm of its own in front of the projection.
NARROW = (
  ('model.embed', 'factorized(size=16, multiple_of=8, position=learned(), norm=layer_norm())'),
  ('model.position', 'none()'),
  ('model.embed_norm', ''),
)


@functools.cache
def run(spec='electra()', *changes):
  return made(spec, *changes)


@functools.cache
def start(spec='electra()', *changes):
  return jax.tree.map(np.asarray, run(spec, *changes).init(jax.random.key(0)).params)


def batch(tokens=None, lengths=(T,) * ROWS):
  segments = (np.arange(T) < np.asarray(lengths)[:, None]).astype(np.int32)
  if tokens is None:
    tokens = np.random.default_rng(0).integers(0, 256, segments.shape)
  tokens = np.where(segments > 0, np.broadcast_to(tokens, segments.shape), 0).astype(np.int32)
  positions = np.broadcast_to(np.arange(T, dtype=np.int32), segments.shape)
  made = dict(tokens=tokens, segments=segments, positions=positions)
  return jax.tree.map(jnp.asarray, made)


@functools.cache
def compiled(spec, *changes):
  return jax.jit(lambda p, b, key: run(spec, *changes).objective.loss(p, {}, b, key, False))


def loss(p, b, spec='electra()', seed=1, changes=()):
  return compiled(spec, *changes)(jax.tree.map(jnp.asarray, p), b, jax.random.key(seed))


@functools.cache
def differentiated(spec, *changes):
  f = lambda p, b: run(spec, *changes).objective.loss(p, {}, b, jax.random.key(1), False).sum
  return jax.jit(jax.value_and_grad(f))


def slope(p, spec='electra()', changes=()):
  """(loss, gradient) of one batch, as NumPy arrays."""
  found = differentiated(spec, *changes)(jax.tree.map(jnp.asarray, p), batch())
  return jax.tree.map(np.asarray, found)


def mean(out, name):
  total, weight = out.metrics[name]
  return float(total / weight)


def edited(p, path, value):
  *front, last = path.split('/')
  p = jax.tree.map(np.array, p)
  node = functools.reduce(lambda t, k: t[k], front, p)
  node[last] = value(node[last]) if callable(value) else np.broadcast_to(value, node[last].shape)
  return p


def always(p, token):
  """A generator that fills in one token."""
  return edited(
    p, 'head/bias', lambda b: np.where(np.arange(b.size) == token, 1e4, 0).astype(b.dtype)
  )
