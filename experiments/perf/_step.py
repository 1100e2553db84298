"""What the scripts of this folder time: the step of a recipe on one device, and random tokens."""

import jax
import numpy as np

from lmjax import build
from lmjax import config


def make(recipe: str, rows: int, **changes: str) -> build.Run:
  """The recipe with `rows` rows a batch; `__` in a change stands for a dot."""
  length = config.load(recipe).data.length
  given = {'mesh.data': '1', 'micro_batches': '1', 'batch_tokens': str(rows * length)}
  given |= {k.replace('__', '.'): v for k, v in changes.items()}
  return build.build(config.resolve(config.load(recipe, list(given.items()))))


def batches(run: build.Run, n: int) -> list:
  """n different ones, on the device."""
  rng, shape = np.random.default_rng(0), (run.rows, run.length + run.lookahead)
  one = lambda: dict(
    tokens=rng.integers(0, run.tokenizer.vocab_size, shape, dtype=np.int32),
    segments=np.ones(shape, np.int32),
    positions=np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape).copy(),
  )
  return jax.device_put([one() for _ in range(n)])
