"""Models of a few lines for decoding rules: logits are a table of the last two inputs, so that
everything can be enumerated. An input is a weight for each token, so that mixtures are seen too.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from lmjax import decode_loop
from lmjax import generate
from lmjax import padding
from lmjax.decoding import _base


class Table:
  """logits = sum_ab before_a last_b table[a, b]; a = V where nothing came before. A cache is
  (inputs (R, room, V), how many of them count (R,)).
  """

  def __init__(self, table, room: int = 40):
    self.table, self.room = jnp.asarray(table, jnp.float32), room  # (V + 1, V, V)
    self.vocab = self.table.shape[-1]

  def __call__(self, cache, tokens_R):
    logits_RTV, cache = self.many(cache, tokens_R[:, None])
    return logits_RTV[:, 0], cache

  def many(self, cache, tokens_RT, real_RT=None):
    out = []
    real_RT = jnp.ones(tokens_RT.shape, bool) if real_RT is None else real_RT
    for t in range(tokens_RT.shape[1]):
      logits, cache = self._read(cache, jax.nn.one_hot(tokens_RT[:, t], self.vocab), real_RT[:, t])
      out.append(logits)
    return jnp.stack(out, axis=1), cache

  def mixed(self, cache, tokens_RK, weights_RK):
    x_RV = jnp.einsum('rk,rkv->rv', weights_RK, jax.nn.one_hot(tokens_RK, self.vocab))
    return self._read(cache, x_RV, jnp.ones(len(x_RV), bool))

  def alone(self, tokens_RT):
    return self.many(self.empty(len(tokens_RT)), tokens_RT, tokens_RT >= 0)[0][:, -1]

  def back(self, cache, dropped_R, most):
    return cache[0], cache[1] - dropped_R

  def rows(self, cache, rows_R):
    return jax.tree.map(lambda a: a[rows_R], cache)

  def empty(self, rows):
    return jnp.zeros((rows, self.room, self.vocab)), jnp.zeros(rows, jnp.int32)

  def _read(self, cache, x_RV, real_R):
    """What is not real keeps its place, and counts as nothing."""
    inputs, n_R = cache
    rows = jnp.arange(len(n_R))
    before_RV = inputs[rows, jnp.maximum(n_R - 1, 0)]
    nothing_R = (n_R < 1) | ~jnp.any(before_RV != 0, axis=-1)
    before_RV = jnp.concatenate(
      [jnp.where(nothing_R[:, None], 0, before_RV), nothing_R[:, None]], axis=1
    )
    x_RV = jnp.where(real_R[:, None], x_RV, 0)
    logits = jnp.einsum('ra,rb,abv->rv', before_RV, x_RV, self.table)
    return logits, (inputs.at[rows, n_R].set(x_RV, mode='drop'), n_R + 1)


def table(vocab: int, seed: int = 0, scale: float = 1.5):
  return np.random.default_rng(seed).normal(size=(vocab + 1, vocab, vocab)) * scale


def independent(p):
  """A table of one distribution whatever came before."""
  p = np.asarray(p, np.float64)
  return np.broadcast_to(np.log(p), (len(p) + 1, len(p), len(p)))


@functools.partial(jax.jit, static_argnames=('chosen', 'models', 'length'))
def _run(chosen, models, length, tokens_BP, real_BP, tail_BC, eos, arrays, keys_B, limit):
  """Prompts of one length with an entry in front that is not real, as padding is."""
  slots = tuple(
    m.rows(
      m.many(m.empty(len(tokens_BP)), tokens_BP, real_BP)[1],
      jnp.repeat(jnp.arange(len(tokens_BP)), chosen.streams),
    )
    for m in models
  )
  start = _base.Start(tail_BC, eos, length)
  done_B = jnp.zeros(len(tokens_BP), bool)
  return decode_loop.loop(chosen, models, slots, start, arrays, keys_B, done_B, limit)


def run(spec, models, prompts, n, *, eos=-1, seed=0, keys=None, arrays=None):
  """`decode_loop.Decoded` of a rule over tables, numpy."""
  chosen = _base.rule(spec)
  columns = max(map(len, prompts))
  tokens, segments, _ = padding.left_padded([p[:-1] for p in prompts], columns, len(prompts))
  found, _ = _run(
    chosen,
    tuple(models),
    n,
    jnp.asarray(tokens),
    jnp.asarray(segments) > 0,
    jnp.asarray(padding.tails(prompts, chosen.tail, len(prompts))),
    jnp.int32(eos),
    arrays,
    generate.row_keys(prompts, seed) if keys is None else keys,
    n,
  )
  return jax.device_get(found)


def softmax(z):
  e = np.exp(z - np.max(z, axis=-1, keepdims=True))
  return e / e.sum(axis=-1, keepdims=True)


def chi_square(counts, p):
  """The statistic of counts against probabilities; nothing may be seen where p is 0."""
  counts, p = np.ravel(counts).astype(np.float64), np.ravel(p)
  assert counts[p < 1e-12].sum() == 0
  counts, want = counts[p >= 1e-12], counts.sum() * p[p >= 1e-12]
  return np.sum((counts - want) ** 2 / want)
