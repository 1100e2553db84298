"""Training in float16, for GPUs without bfloat16: no loss is scaled, since gradients are taken of
sums of tokens' losses and divided in float32 afterwards.
"""

import jax
import jax.numpy as jnp
import numpy as np

from lmjax import build
from lmjax import config
from lmjax import train

TOKENS, LENGTH = 8192, 64


def gradients(dtype):
  """Gradients of a tiny model in `dtype`, by path, of the same float32 parameters and batch."""
  sizes = dict(width='64', depth='2', dtype=dtype)
  overrides = [(f'model.{k}', v) for k, v in sizes.items()]
  overrides += [('data.length', str(LENGTH)), ('batch_tokens', str(TOKENS))]
  run = build.build(config.resolve(config.load('quickstart', overrides)))
  share = 1 / np.arange(1, 250)  # as words are: the first is every sixth
  tokens = np.random.default_rng(0).choice(
    249, (TOKENS // LENGTH, LENGTH + 1), p=share / sum(share)
  )
  batch = dict(tokens=tokens + 1, segments=np.ones_like(tokens))
  batch['positions'] = np.broadcast_to(np.arange(LENGTH + 1), tokens.shape)
  batch = jax.tree.map(lambda a: jnp.asarray(a, jnp.int32), batch)
  state = run.init(jax.random.key(0))
  taken = jax.jit(lambda p: train.accumulate(run.objective, p, {}, batch, jax.random.key(1), 1)[4])
  found = jax.tree_util.tree_leaves_with_path(taken(state.params))
  return {jax.tree_util.keystr(path): np.asarray(g, np.float64) for path, g in found}


def test_gradients_neither_vanish_nor_overflow():
  """Of the mean of tokens, some would be wrong by 17 %: they lie below float16's smallest."""
  want, got = gradients('float32'), gradients('float16')
  assert want.keys() == got.keys() and len(want) > 5
  errors = {k: np.linalg.norm(got[k] - g) / np.linalg.norm(g) for k, g in want.items()}
  assert max(errors.values()) < 0.02 and np.median(list(errors.values())) < 2e-3, errors
  largest = max(np.abs(g).max() for g in want.values())
  assert 16 * largest < np.finfo(np.float16).max
