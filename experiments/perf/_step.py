"""What the scripts of this folder time: the step of a recipe on one device, and random tokens."""

import jax
import numpy as np

from lmjax import build
from lmjax import config


def make(recipe: str, rows: int, **changes: str) -> build.Run:
  """The recipe with `rows` rows a batch; `__` in a change stands for a dot."""
  changes = {k.replace('__', '.'): v for k, v in changes.items()}
  length = config.load(recipe, list(changes.items())).data.length
  given = {'mesh.data': '1', 'micro_batches': '1', 'batch_tokens': str(rows * length)}
  return build.build(config.resolve(config.load(recipe, list((given | changes).items()))))


def drawn(run: build.Run, n: int) -> list[dict[str, np.ndarray]]:
  """n different batches of any words that the model knows."""
  rng, shape = np.random.default_rng(0), (run.rows, run.length + run.lookahead)
  words = run.config['model']['vocab'] or run.tokenizer.vocab_size
  one = lambda: dict(
    tokens=rng.integers(0, words, shape, dtype=np.int32),
    segments=np.ones(shape, np.int32),
    positions=np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape).copy(),
  )
  return [one() for _ in range(n)]


def batches(run: build.Run, n: int) -> list:
  """The same on the device."""
  return jax.device_put(drawn(run, n))
